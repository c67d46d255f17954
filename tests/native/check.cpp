// The kernels against plain loops in double, without Python: for processors that only an emulator runs here.
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include "conv.h"

struct Pattern {  // as in linear.cpp
  long outputs, inputs, height;
  const int32_t *rowptr, *col, *colptr, *row, *slot;
};
struct Layer {  // as in conv_plan.cpp
  long outputs, inputs, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, height, width;
};

extern "C" {
int pattern_build(const uint8_t*, long, long, int, int32_t*, int32_t*, int32_t*, int32_t*, int32_t*);
void pack(const float*, long, long, long, float*, long, int);
void gather(const float*, const int32_t*, long, float*, int);
void linear_forward(const float*, long, const Pattern*, const float*, const float*, float*, int);
void linear_backward(const float*, const float*, long, const Pattern*, const float*, float*, float*, float*, float*,
                     int);
void linear_forward_rows(const float*, long, const Pattern*, const float*, const float*, float*, long, int, int);
void linear_backward_rows(const float*, const float*, long, const Pattern*, const float*, float*, float*, float*,
                          float*, long, int, int);
long conv_entries(const uint8_t*, long, long, long, int32_t*, int32_t*, int32_t*);
void conv_pass(const Layer*, int, long, long, Pass*);
long conv_sort(const Layer*, int, long, const int32_t*, const int32_t*, const int32_t*, Pass*);
int conv_plain(const Pass*);
void conv_run(const Pass*, const float*, long, int, const float*, float*, const float*, float*, int, int);
void conv_unblock(const float*, long, long, float*, int);
void conv_grad(const Pass*, const float*, long, int, const float*, float*, float*, int);
void norm_forward(const float*, const float*, long, long, long, const float*, const float*, double, int, float*, float*,
                  float*, uint16_t*, int);
void norm_backward(const float*, const uint16_t*, const float*, long, long, long, const float*, const float*,
                   const float*, double, int, float*, float*, float*, float*, int);
}

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Ints = std::vector<int32_t>;

constexpr int THREADS = 2;
std::mt19937 source(0);
int checked = 0, wrong = 0;

Floats normal(long n) {
  std::normal_distribution<float> draw;
  Floats v(n);
  for (float& x : v) x = draw(source);
  return v;
}
std::vector<uint8_t> some(long n, double density) {
  std::vector<uint8_t> v(n);
  for (uint8_t& x : v) x = std::uniform_real_distribution<>()(source) < density;
  return v;
}

// ours against the oracle, relative to its size before anything cancels.
void compare(const char* what, const Floats& ours, const Doubles& want, const Doubles& scale) {
  double error = 0, size = 1e-30;
  for (size_t i = 0; i < want.size(); i++) error += std::pow(ours[i] - want[i], 2), size += scale[i] * scale[i];
  checked++;
  if (!(std::sqrt(error / size) <= 1e-5)) wrong++, std::printf("%s: relative error %g\n", what, std::sqrt(error / size));
}

// The sums of products that an operation is made of, and of their absolute values.
struct Sum {
  Doubles value, scale;
  explicit Sum(long n) : value(n), scale(n) {}
  void add(long i, double x) { value[i] += x, scale[i] += std::abs(x); }
};

void linear(long samples, long inputs, long outputs, double density, bool rows, long height = 1) {
  auto mask = some(outputs * inputs, density);
  for (long o = 0; o < outputs; o++) std::copy_n(&mask[o / height * height * inputs], inputs, &mask[o * inputs]);
  Ints rowptr(outputs + 1), col(mask.size()), colptr(inputs + 1), row(mask.size()), slot(mask.size());
  const long n = std::count(mask.begin(), mask.end(), 1);
  const int found = pattern_build(mask.data(), outputs, inputs, 8, rowptr.data(), col.data(), colptr.data(), row.data(),
                                  slot.data());
  const Pattern p{outputs, inputs, found, rowptr.data(), col.data(), colptr.data(), row.data(), slot.data()};
  const Floats x = normal(samples * inputs), d = normal(samples * outputs), v = normal(n), bias = normal(outputs);
  Sum y(samples * outputs), dx(samples * inputs), dv(n), db(outputs);
  for (long s = 0; s < samples; s++)
    for (long o = 0, k = 0; o < outputs; o++) {
      y.add(s * outputs + o, bias[o]), db.add(o, d[s * outputs + o]);
      for (long i = 0; i < inputs; i++)
        if (mask[o * inputs + i]) {
          y.add(s * outputs + o, double(v[k]) * x[s * inputs + i]);
          dx.add(s * inputs + i, double(v[k]) * d[s * outputs + o]);
          dv.add(k++, double(x[s * inputs + i]) * d[s * outputs + o]);
        }
    }
  Floats our_y(y.value.size()), our_dx(dx.value.size()), our_dv(n), our_db(outputs), turned(n);
  if (rows) {
    Floats sums(THREADS * (n + outputs));
    if (found > 1) turned = v;
    else gather(v.data(), slot.data(), n, turned.data(), THREADS);
    linear_forward_rows(x.data(), samples, &p, v.data(), bias.data(), our_y.data(), 64, 0, THREADS);
    linear_backward_rows(x.data(), d.data(), samples, &p, turned.data(), our_dx.data(), our_dv.data(), our_db.data(),
                         sums.data(), 64, 0, THREADS);
  } else {
    const long ld = ratio_up(samples, W) * W;
    Floats tx(inputs * ld), td(outputs * ld), ty(outputs * ld), tdx(inputs * ld);
    pack(x.data(), samples, inputs, inputs, tx.data(), ld, THREADS);
    pack(d.data(), samples, outputs, outputs, td.data(), ld, THREADS);
    linear_forward(tx.data(), ld, &p, v.data(), bias.data(), ty.data(), THREADS);
    linear_backward(tx.data(), td.data(), ld, &p, v.data(), turned.data(), tdx.data(), our_dv.data(), our_db.data(),
                    THREADS);
    for (long s = 0; s < samples; s++) {
      for (long o = 0; o < outputs; o++) our_y[s * outputs + o] = ty[o * ld + s];
      for (long i = 0; i < inputs; i++) our_dx[s * inputs + i] = tdx[i * ld + s];
    }
  }
  compare("linear y", our_y, y.value, y.scale), compare("linear dx", our_dx, dx.value, dx.scale);
  compare("linear dv", our_dv, dv.value, dv.scale), compare("linear db", our_db, db.value, db.scale);
}

// A pass with its arrays, and its results in the plain layout.
struct Ready {
  Pass p;
  Ints ptr, offset, slot;
  Ready(const Layer& l, int phase, const Ints& output, const Ints& input, const Ints& tap) {
    const long n = output.size();
    conv_pass(&l, phase, n, 0, &p);
    ptr.resize(p.chunks * p.outputs + 1), offset.resize(n + 1), slot.resize(n + 1);
    p.ptr = ptr.data(), p.offset = offset.data(), p.slot = slot.data();
    conv_sort(&l, phase, n, output.data(), input.data(), tap.data(), &p);
  }
};
Floats run(const std::vector<Ready>& passes, const Floats& x, long images, const Floats& v, const float* bias) {
  const Pass& first = passes[0].p;
  const long size = first.outputs * first.to_height * first.to_width;
  const bool plain = std::all_of(passes.begin(), passes.end(), [](const Ready& r) { return conv_plain(&r.p); });
  Floats y(plain ? images * size : ratio_up(images, W) * W * size), ordered(v.size() + 1);
  for (const Ready& r : passes)
    if (r.p.rows && r.p.cols)
      conv_run(&r.p, x.data(), images, 0, v.data(), ordered.data(), bias, y.data(), !plain, THREADS);
  if (plain) return y;
  Floats out(images * size);
  conv_unblock(y.data(), images, size, out.data(), THREADS);
  return out;
}

void conv(long images, const Layer& l, double density) {
  const long taps = l.kernel_h * l.kernel_w, rows = (l.height + 2 * l.pad_h - l.kernel_h) / l.stride_h + 1,
             cols = (l.width + 2 * l.pad_w - l.kernel_w) / l.stride_w + 1;
  const auto mask = some(l.outputs * l.inputs * taps, density);
  const long n = conv_entries(mask.data(), l.outputs, l.inputs, taps, nullptr, nullptr, nullptr);
  Ints output(n), input(n), tap(n);
  conv_entries(mask.data(), l.outputs, l.inputs, taps, output.data(), input.data(), tap.data());
  const Floats x = normal(images * l.inputs * l.height * l.width), d = normal(images * l.outputs * rows * cols),
               v = normal(n), bias = normal(l.outputs);
  Sum y(d.size()), dx(x.size()), dv(n);
  for (size_t k = 0; k < d.size(); k++) y.add(k, bias[k / (rows * cols) % l.outputs]);
  for (long m = 0; m < images; m++)
    for (long k = 0; k < n; k++)
      for (long i = 0; i < rows; i++)
        for (long j = 0; j < cols; j++) {
          const long r = i * l.stride_h + tap[k] / l.kernel_w - l.pad_h;
          const long c = j * l.stride_w + tap[k] % l.kernel_w - l.pad_w;
          if (r < 0 || r >= l.height || c < 0 || c >= l.width) continue;
          const long to = ((m * l.outputs + output[k]) * rows + i) * cols + j;
          const long from = ((m * l.inputs + input[k]) * l.height + r) * l.width + c;
          y.add(to, double(v[k]) * x[from]), dx.add(from, double(v[k]) * d[to]), dv.add(k, double(x[from]) * d[to]);
        }
  std::vector<Ready> forward, backward;
  forward.emplace_back(l, -1, output, input, tap);
  for (int phase = 0; phase < l.stride_h * l.stride_w; phase++) backward.emplace_back(l, phase, output, input, tap);
  compare("conv y", run(forward, x, images, v, bias.data()), y.value, y.scale);
  compare("conv dx", run(backward, d, images, v, nullptr), dx.value, dx.scale);
  Floats sums(THREADS * (n + W)), our_dv(n + 1);
  conv_grad(&forward[0].p, x.data(), images, 0, d.data(), sums.data(), our_dv.data(), THREADS);
  compare("conv dv", our_dv, dv.value, dv.scale);
}

void norm(long images, long channels, long size) {
  const long all = images * channels * size;
  const double count = images * size, eps = 1e-5;
  const Floats x = normal(all), other = normal(all), grad = normal(all), weight = normal(channels),
               bias = normal(channels);
  Floats mean(channels), var(channels), y(all), dx(all), added(all), dw(channels), db(channels);
  std::vector<uint16_t> bits(images * channels * ratio_up(size, W));
  norm_forward(x.data(), other.data(), images, channels, size, weight.data(), bias.data(), eps, 1, mean.data(),
               var.data(), y.data(), bits.data(), THREADS);
  norm_backward(x.data(), bits.data(), grad.data(), images, channels, size, weight.data(), mean.data(), var.data(), eps,
                1, dx.data(), added.data(), dw.data(), db.data(), THREADS);
  Doubles want_y(all), want_dx(all), want_added(all), want_dw(channels), want_db(channels), ones(all, 1.0),
      counts(channels, count);
  for (long c = 0; c < channels; c++) {
    const auto each = [&](const std::function<void(long)>& f) {
      for (long m = 0; m < images; m++)
        for (long k = 0; k < size; k++) f((m * channels + c) * size + k);
    };
    double m = 0, s = 0;
    each([&](long k) { m += x[k] / count; });
    each([&](long k) { s += std::pow(x[k] - m, 2) / count; });
    const double inverse = 1 / std::sqrt(s + eps);
    each([&](long k) {
      const double z = (x[k] - m) * inverse, v = z * weight[c] + bias[c] + other[k];
      want_y[k] = std::max(v, 0.0), want_added[k] = v > 0 ? grad[k] : 0;
      want_dw[c] += want_added[k] * z, want_db[c] += want_added[k];
    });
    each([&](long k) {
      const double z = (x[k] - m) * inverse;
      want_dx[k] = weight[c] * inverse * (want_added[k] - want_db[c] / count - z * want_dw[c] / count);
    });
  }
  compare("norm y", y, want_y, ones), compare("norm dx", dx, want_dx, ones);
  compare("norm addend", added, want_added, ones), compare("norm dw", dw, want_dw, counts);
  compare("norm db", db, want_db, counts);
}

}  // namespace

int main() {
  for (const double density : {0.0, 0.1, 0.6, 1.0}) {
    for (const long samples : {1, 16, 33, 128, 150})
      for (const bool rows : {false, true}) {
        linear(samples, 1, 1, density, rows), linear(samples, 17, 40, density, rows);
        linear(samples, 70, 9, density, rows);
        for (const long height : {2, 4, 8}) linear(samples, 33, 24, density, rows, height);
      }
    for (const long images : {1, 17}) {
      conv(images, {5, 3, 3, 3, 1, 1, 1, 1, 8, 8}, density), conv(images, {9, 20, 3, 3, 2, 2, 1, 1, 9, 7}, density);
      conv(images, {4, 33, 1, 1, 1, 2, 0, 0, 4, 4}, density), conv(images, {6, 2, 5, 3, 2, 1, 3, 0, 6, 19}, density);
    }
  }
  for (const long images : {1, 5})
    for (const long size : {16, 17, 49}) norm(images, 3, size), norm(images, 70, size);
  std::printf("%d of %d results are wrong\n", wrong, checked);
  return wrong != 0;
}
