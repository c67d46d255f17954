// exp of what is not positive, and GELU with its derivative, for 16 floats each.
#pragma once
#include "vector.h"

namespace {

// exp(x + tail) for x <= 0 and -0.04 <= tail <= 0, to 3e-7; zero where it is below the smallest normal number.
inline Vector exp(Vector x, Vector tail = Vector{}) {
  const Vector shifted = x * all(1.44269504f) + all(12582912.0f), n = shifted - all(12582912.0f);  // to the next integer
  const Vector r = x - n * all(0.693359375f) + n * all(2.12194440e-4f) + tail;                      // in two parts of ln 2
  Vector p = all(0.008137018071f);
  for (float c : {0.04189491023f, 0.1666886885f, 0.4999921963f, 1.0f, 1.0f}) p = p * r + all(c);
  return x < all(-87.0f) ? zero() : (Vector)((Lanes)p + ((Lanes)shifted << 23));
}

struct Gelu {
  Vector value, slope;
};

// x Phi(x) and Phi(x) + x phi(x), where Phi(-a) = exp(-a a / 2) t P(t) for a >= 0 and t = 1 / (1 + 0.3 a). P is a minimax fit
// to 2e-7 up to a = 14.5; a is split, so that the square of its larger part is exact and the tail as precise as the rest.
inline Gelu gelu(Vector x) {
  const Vector a = (Vector)((Lanes)x & 0x7fffffff), high = (Vector)((Lanes)x & 0x7ffff000), half = high * all(-0.5f);
  const Vector e = exp(half * high, (a - high) * (half - all(0.5f) * a)), t = all(1.0f) / (all(1.0f) + all(0.3f) * a);
  Vector p = all(0.03542377476f);
  for (float c : {-0.1561586043f, 0.2045570384f, -0.05203423442f, 0.127691878f, 0.1001759185f, 0.1207121404f, 0.119632007f})
    p = p * t + all(c);
  const Vector tail = e * t * p, phi = (Lanes)x < 0 ? tail : all(1.0f) - tail;
  return {x * phi, phi + x * e * all(0.39894228f)};
}

}  // namespace
