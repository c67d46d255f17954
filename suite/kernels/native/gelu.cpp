// GELU alone, exact (by erf, not tanh): value and gradient of n floats. Plain C ABI.
#include "gelu.h"

extern "C" {

void gelu_forward(const float* x, long n, float* y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long i = 0; i < n; i += W) store_part(y + i, gelu(load_part(x + i, n - i)).value, n - i);
}

// dx = grad times the derivative at x.
void gelu_backward(const float* x, const float* grad, long n, float* dx, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long i = 0; i < n; i += W)
    store_part(dx + i, load_part(grad + i, n - i) * gelu(load_part(x + i, n - i)).slope, n - i);
}
}
