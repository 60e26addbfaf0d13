// Noise stream v2: Philox4x32-10 (Salmon et al., SC'11) and Box-Muller, in float32.
// The contract is in kernels/noise/README.md; kernels/noise/reference.py implements it readably.
#pragma once

#include "simd/math.hpp"

namespace lk {
namespace LK_ISA {

// The kind of values that the stream's words are turned into. kWords are the words of the uniforms and kScrambles those
// that scramble Sobol' points, stored as the bits of floats.
enum Noise { kNormals, kUniforms, kWords, kScrambles };
constexpr uint32_t substream_of(Noise kind) { return kind == kNormals ? 0 : kind == kScrambles ? 2 : 1; }

template <int kChains>
struct Words {
  U w[kChains][4];
};

// The keys of the ten rounds, computed once per tile.
struct RoundKeys {
  uint32_t k[20];
};

inline RoundKeys round_keys(uint64_t seed) {
  RoundKeys keys;
  for (uint32_t round = 0; round < 10; ++round) {
    keys.k[2 * round] = static_cast<uint32_t>(seed) + round * 0x9E3779B9u;
    keys.k[2 * round + 1] = static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u;
  }
  return keys;
}

// Philox for kChains * W counters from `first` on, each (low, high, substream, 0). Chain j holds the counters
// first + j W + interleaved_index().
template <int kChains>
LK_INLINE Words<kChains> philox(const RoundKeys& keys, uint64_t first, uint32_t substream) {
  Words<kChains> c;
  for (int j = 0; j < kChains; ++j) {
    const uint64_t begin = first + static_cast<uint64_t>(j * W);
    const uint32_t begin_low = static_cast<uint32_t>(begin);
    c.w[j][0] = interleaved_index() + begin_low;
    const U carry = bit_cast<U>(c.w[j][0] < begin_low);  // all ones, that is -1, in lanes that passed 2^32
    c.w[j][1] = static_cast<uint32_t>(begin >> 32) - carry;
    c.w[j][2] = U{} + substream;
    c.w[j][3] = U{};
  }
  for (int round = 0; round < 10; ++round) {
    for (int j = 0; j < kChains; ++j) {
      U high0, low0, high2, low2;
      multiply(c.w[j][0], 0xD2511F53u, high0, low0);
      multiply(c.w[j][2], 0xCD9E8D57u, high2, low2);
      c.w[j][0] = high2 ^ c.w[j][1] ^ keys.k[2 * round];
      c.w[j][1] = low2;
      c.w[j][2] = high0 ^ c.w[j][3] ^ keys.k[2 * round + 1];
      c.w[j][3] = low0;
    }
  }
  return c;
}

// Two normals from two words: radius from the first, angle from the second. u lies in (0, 1].
template <int N>
LK_INLINE void box_muller(const U (&radius_word)[N], const U (&angle_word)[N], Pack<F, N>& even, Pack<F, N>& odd) {
  Pack<F, N> u, t, sine, cosine;
  for (int j = 0; j < N; ++j) {
    u.at[j] = to_float(radius_word[j]);
    t.at[j] = to_float(bit_cast<I>(angle_word[j]));
  }
  const Pack<F, N> radius = map([](F x) { return sqrt(x); }, ln(fma(u, 0x1p-32f, 0x1p-33f)) * -2.0f);
  sin_cos_pi(t * 0x1p-31f, sine, cosine);
  even = radius * cosine;
  odd = radius * sine;
}

LK_INLINE F to_uniform(U w) {
  const F u = fma(to_float(w), 0x1p-32f, 0x1p-33f);
  const F below_one = splat<float>(0x1.fffffep-1f);
  return u < below_one ? u : below_one;
}

// Writes whole steps of kChains * 4 * W elements to [i, end) and advances i and counter past them.
template <Noise kind, int kChains>
LK_INLINE void noise_steps(const RoundKeys& keys, uint64_t& counter, int& i, int end, float* out) {
  constexpr int step = kChains * 4 * W;
  for (; i + step <= end; i += step, counter += kChains * W) {
    const Words<kChains> words = philox<kChains>(keys, counter, substream_of(kind));
    for (int j = 0; j < kChains; ++j) {
      const U* w = words.w[j];
      float* to = out + i + 4 * W * j;
      if constexpr (kind == kNormals) {
        Pack<F, 2> even, odd;
        box_muller<2>({w[0], w[2]}, {w[1], w[3]}, even, odd);
        store_interleaved(to, even.at[0], odd.at[0], even.at[1], odd.at[1]);
      } else if constexpr (kind == kWords || kind == kScrambles) {
        store_interleaved(to, bit_cast<F>(w[0]), bit_cast<F>(w[1]), bit_cast<F>(w[2]), bit_cast<F>(w[3]));
      } else {
        store_interleaved(to, to_uniform(w[0]), to_uniform(w[1]), to_uniform(w[2]), to_uniform(w[3]));
      }
    }
  }
}

constexpr int kStep = 4 * W;  // the least number of elements that are computed at once
constexpr int kChains = 3;    // Philox states advanced side by side: 3 was the fastest of 1, 2, 3, 4

// The number of floats in whole steps that hold n elements, beginning anywhere in a step.
constexpr int noise_length(int n) { return n + 3 + kStep; }

// Writes elements e, ..., e + n - 1 of the stream into `buffer` (noise_length(n) floats); returns the address of e.
// Where e % 4 == 0 and n % kStep == 0 it writes exactly buffer[0..n).
template <Noise kind>
inline const float* noise_tile(uint64_t seed, uint64_t e, int n, float* buffer) {
  const RoundKeys keys = round_keys(seed);
  const int skipped = static_cast<int>(e % 4);
  const int end = (n + skipped + kStep - 1) / kStep * kStep;
  uint64_t counter = e / 4;
  int i = 0;
  noise_steps<kind, kChains>(keys, counter, i, end, buffer);
  noise_steps<kind, 1>(keys, counter, i, end, buffer);
  return buffer + skipped;
}

}  // namespace LK_ISA
}  // namespace lk
