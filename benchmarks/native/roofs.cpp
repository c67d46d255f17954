// What the machine can do at most: multiply-adds from registers, and multiply-adds that load one operand each.
#include <omp.h>
#include <chrono>
#include <cstdlib>

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, CHAINS = 16;
#elif defined(__AVX__)
constexpr int BYTES = 32, CHAINS = 12;  // of 16 registers
#else
constexpr int BYTES = 16, CHAINS = 16;
#endif
constexpr int STREAMS = 8;
constexpr long W = BYTES / 4;

typedef float Vector __attribute__((vector_size(BYTES)));

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Opaque to the optimiser (noipa), so that nothing moves out of what is timed.
__attribute__((noipa)) float from_registers(long rounds) {
  Vector a[CHAINS];
  const Vector b = 0.999f - Vector{}, c = 0.001f - Vector{};
  for (int i = 0; i < CHAINS; i++) a[i] = 0.1f * i - Vector{};
  for (long r = 0; r < rounds; r++)
    for (int i = 0; i < CHAINS; i++) a[i] = a[i] * b + c;
  float total = 0;
  for (int i = 0; i < CHAINS; i++) total += a[i][0];
  return total;
}

__attribute__((noipa)) float from_memory(const float* x, long floats, long rounds) {
  Vector a[STREAMS] = {};
  const Vector b = 0.999f - Vector{};
  for (long r = 0; r < rounds; r++)
    for (long j = 0; j < floats; j += STREAMS * W)
      for (int i = 0; i < STREAMS; i++) a[i] += *reinterpret_cast<const Vector*>(x + j + i * W) * b;
  float total = 0;
  for (int i = 0; i < STREAMS; i++) total += a[i][0];
  return total;
}

}  // namespace

// Multiply-adds of one round of one thread from registers.
extern "C" long chained() { return CHAINS * W; }

// Seconds of the slowest of the threads, each over its own buffer of `floats` (a multiple of 512; 0: registers alone).
extern "C" double seconds(long floats, long rounds, int threads) {
  double slowest = 0;
#pragma omp parallel num_threads(threads) reduction(max : slowest)
  {
    volatile float sink = 0;
    float* x = floats ? static_cast<float*>(std::aligned_alloc(4096, floats * sizeof(float))) : nullptr;
    if (floats && !x) std::abort();
    for (long i = 0; i < floats; i++) x[i] = 1e-6f;
    if (floats) sink = from_memory(x, floats, 1);
#pragma omp barrier
    const double start = now();
    sink = floats ? from_memory(x, floats, rounds) : from_registers(rounds);
    slowest = now() - start;
    std::free(x);
  }
  return slowest;
}
