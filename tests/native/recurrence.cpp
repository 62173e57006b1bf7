// csrc/cpu/recurrence against the formulas in double: with and without a memory, an output block, a projection.
#include "../../csrc/cpu/recurrence.h"

#include "check.h"

namespace {

using fastlrp::cpu::Recurrence;

struct Shape {
  int64_t batch, targets, steps, hidden, size, gates;
  bool output, memory, reset;
};

template <class T>
std::vector<T> small(int64_t size, double factor) {
  std::vector<T> values = native::mixed<T>(size);
  for (T& value : values) {
    value *= static_cast<T>(factor);
  }
  return values;
}

template <class T>
void check(const Shape& s) {
  const bool projected = s.hidden != s.size;
  const int64_t B = s.batch, K = s.targets, N = s.steps, P = s.hidden, H = s.size, G = s.gates;
  const int64_t J = G + s.output, O = projected ? 1 + s.output : 1;
  const std::vector<T> r = native::mixed<T>(B * K * N * P), final = native::mixed<T>(B * K * H);
  const std::vector<T> w = small<T>(J * H * P, 0.5 / static_cast<double>(J * H)), v = small<T>(P * H, 0.5 / P);
  const std::vector<T> entry = native::mixed<T>(B * N * P), scale = small<T>(B * N * P, 0.5);
  const std::vector<T> carry = small<T>(B * N * H, 0.4), gates = small<T>(B * N * G * H, 0.5);
  const std::vector<T> out_entry = native::mixed<T>(B * N * H), out_scale = small<T>(B * N * O * H, 0.5);
  const std::vector<T> reset = small<T>(B * N * H, 0.5);
  std::vector<double> flows(B * K * N * J * H), first(B * K * P), last(B * K * H);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t k = 0; k < K; ++k) {
      std::vector<double> a(P), memory(H);
      for (int64_t n = 0; n < H && s.memory; ++n) {
        memory[n] = final[(b * K + k) * H + n];
      }
      for (int64_t t = N - 1; t >= 0; --t) {
        const int64_t at = b * N + t, row = (b * K + k) * N + t;
        std::vector<double> arrived(P), d(H), sent(J * H);
        for (int64_t n = 0; n < P; ++n) {
          arrived[n] = double(entry[at * P + n]) * r[row * P + n] + scale[at * P + n] * a[n];
        }
        for (int64_t n = 0; n < H; ++n) {
          double value = projected ? 0 : arrived[n], out = 0;
          for (int64_t i = 0; i < P && projected; ++i) {
            value += arrived[i] * v[i * H + n];
          }
          if (projected) {
            out = s.output ? out_scale[(at * O + 1) * H + n] * value : 0;
            value *= out_scale[at * O * H + n];
          } else {
            out = double(out_entry[at * H + n]) * r[row * P + n] + out_scale[at * H + n] * a[n];
          }
          d[n] = value + memory[n];
          for (int64_t g = 0; g < G; ++g) {
            sent[g * H + n] = gates[(at * G + g) * H + n] * d[n];
          }
          if (s.output) {
            sent[G * H + n] = out;
          }
          memory[n] = s.memory ? carry[at * H + n] * d[n] : 0;
        }
        std::copy(sent.begin(), sent.end(), flows.begin() + row * J * H);
        for (int64_t n = 0; n < H && s.reset; ++n) {
          sent[(J - 1) * H + n] *= reset[at * H + n];
        }
        std::fill(a.begin(), a.end(), 0.0);
        for (int64_t j = 0; j < J * H; ++j) {
          for (int64_t n = 0; n < P; ++n) {
            a[n] += sent[j] * w[j * P + n];
          }
        }
      }
      std::copy(a.begin(), a.end(), first.begin() + (b * K + k) * P);
      std::copy(memory.begin(), memory.end(), last.begin() + (b * K + k) * H);
    }
  }
  std::vector<T> got_flows = native::poisoned<T>(flows.size()), got_first = native::poisoned<T>(first.size()),
                 got_last = native::poisoned<T>(last.size());
  Recurrence<T> p{};
  p.batch = B, p.targets = K, p.steps = N, p.hidden = P, p.size = H, p.gates = G, p.blocks = J, p.output_blocks = O;
  p.relevance = r.data(), p.weight = w.data(), p.entry = entry.data(), p.scale = scale.data(), p.gate = gates.data();
  p.final = s.memory ? final.data() : nullptr, p.carry = s.memory ? carry.data() : nullptr;
  p.reset = s.reset ? reset.data() : nullptr, p.projection = projected ? v.data() : nullptr;
  p.output_entry = s.output && !projected ? out_entry.data() : nullptr;
  p.output_scale = s.output || projected ? out_scale.data() : nullptr;
  p.flows = got_flows.data(), p.first = got_first.data(), p.memory = got_last.data();
  fastlrp::cpu::recurrence_relevance<T>(p);
  const std::string context = std::to_string(K) + " targets, " + std::to_string(P) + " and " + std::to_string(H);
  CHECK_FOR(native::close(got_flows, flows), context);
  CHECK_FOR(native::close(got_first, first), context);
  CHECK_FOR(native::close(got_last, last), context);
}

}  // namespace

TEST(recurrence_equals_the_formulas) {
  const Shape shapes[] = {
      {1, 1, 1, 1, 1, 1, false, false, false},  {2, 3, 4, 7, 7, 1, false, true, false},
      {1, 25, 3, 33, 33, 3, true, true, false}, {2, 13, 2, 16, 16, 1, false, true, true},
      {1, 49, 2, 5, 17, 1, false, true, false}, {2, 5, 3, 31, 18, 3, true, true, false},
  };
  for (const Shape& shape : shapes) {
    check<float>(shape);
    check<double>(shape);
  }
}
