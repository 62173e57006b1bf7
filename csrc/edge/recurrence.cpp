#include "recurrence.h"

#include "../common/memory.h"
#include "../cpu/recurrence.h"

namespace fastlrp::edge {
namespace {

struct Operand {
  const char* name;
  const OptionalTensor& tensor;
  Sizes sizes;
};

// Dense copies of what the kernel reads, by their order in the operation's arguments.
struct Operands {
  Tensor relevance, weight, entry;
  std::vector<Tensor> others;
};

template <class T>
const T* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T>
void launch(cpu::Recurrence<T> p, const Operands& o, const Tensor& flows, const Tensor& first, const Tensor& memory,
            const Tensor& sums) {
  p.relevance = pointer<T>(o.relevance), p.weight = pointer<T>(o.weight), p.entry = pointer<T>(o.entry);
  p.final = pointer<T>(o.others[0]), p.scale = pointer<T>(o.others[1]), p.carry = pointer<T>(o.others[2]);
  p.gate = pointer<T>(o.others[3]), p.output_entry = pointer<T>(o.others[4]);
  p.output_scale = pointer<T>(o.others[5]), p.reset = pointer<T>(o.others[6]);
  p.projection = pointer<T>(o.others[7]), p.input_weight = pointer<T>(o.others[8]);
  p.spread = pointer<T>(o.others[9]), p.spread_sums = sums.mutable_data_ptr<T>();
  p.flows = flows.mutable_data_ptr<T>(), p.first = first.mutable_data_ptr<T>();
  p.memory = memory.mutable_data_ptr<T>();
  cpu::recurrence_relevance<T>(p);
}

}  // namespace

RecurrenceTensors recurrence_relevance(const Tensor& relevance, const OptionalTensor& final, const Tensor& weight,
                                       const Tensor& entry, const OptionalTensor& scale, const OptionalTensor& carry,
                                       const OptionalTensor& gates, const OptionalTensor& output_entry,
                                       const OptionalTensor& output_scale, const OptionalTensor& reset,
                                       const OptionalTensor& projection, const OptionalTensor& input_weight,
                                       const OptionalTensor& spread) {
  const Check check{kCpu, "recurrence_relevance"};
  check.values("relevance", relevance);
  REQUIRE_VALUE(relevance.dim() == 4, check.op, ": relevance must have shape (B, K, T, P), got ", relevance.sizes());
  const int64_t B = relevance.size(0), K = relevance.size(1), T = relevance.size(2), P = relevance.size(3);
  const bool projected = projection.has_value();
  REQUIRE_VALUE(!projected || projection->dim() == 2, check.op, ": projection must have shape (P, H)");
  REQUIRE_VALUE(!gates.has_value() || gates->dim() == 4, check.op, ": gates must have shape (B, T, G, H)");
  REQUIRE_VALUE(!projected || (output_scale.has_value() && output_scale->dim() == 4 && output_scale->size(2) >= 1 &&
                               output_scale->size(2) <= 2 && !output_entry.has_value()),
                check.op,
                ": with a projection output_scale must have shape (B, T, O, H) with O 1 or 2, and "
                "output_entry must be None");
  REQUIRE_VALUE(projected || output_scale.has_value() == output_entry.has_value(), check.op,
                ": output_entry and output_scale must be given together, or neither");
  const int64_t H = projected ? projection->size(1) : P, G = gates.has_value() ? gates->size(2) : 1;
  const int64_t O = projected ? output_scale->size(2) : 1;
  const int64_t J = G + (projected ? O - 1 : (output_scale.has_value() ? 1 : 0));
  REQUIRE_VALUE(!input_weight.has_value() || input_weight->dim() == 2, check.op,
                ": input_weight must have shape (J H, C)");
  const int64_t C = input_weight.has_value() ? input_weight->size(1) : 0, S = projected ? 4 : 3;
  REQUIRE_VALUE(!spread.has_value() || (J == 1 && P <= H), check.op, ": spread needs one block of gates");
  REQUIRE_VALUE(T > 0 && G > 0, check.op, ": there must be at least one step and one block of gates");
  const Operand others[] = {
      {"final", final, {B, K, H}},
      {"scale", scale, {B, T, P}},
      {"carry", carry, {B, T, H}},
      {"gates", gates, {B, T, G, H}},
      {"output_entry", output_entry, {B, T, H}},
      {"output_scale", output_scale, projected ? Sizes{B, T, O, H} : Sizes{B, T, H}},
      {"reset", reset, {B, T, H}},
      {"projection", projection, {P, H}},
      {"input_weight", input_weight, {J * H, C}},
      {"spread", spread, {B, T, S, H}},
  };
  check.like("weight", weight, relevance);
  check.sizes("weight", weight, {J * H, P});
  check.like("entry", entry, relevance);
  check.sizes("entry", entry, {B, T, P});
  const auto dense = [](const Tensor& t) { return t.resolve_neg().contiguous(); };
  Operands o{dense(relevance), dense(weight), dense(entry), {}};
  for (const Operand& other : others) {
    if (other.tensor.has_value()) {
      check.like(other.name, *other.tensor, relevance);
      check.sizes(other.name, *other.tensor, other.sizes);
    }
    o.others.push_back(other.tensor.has_value() ? dense(*other.tensor) : Tensor());
  }
  const Tensor flows = empty({B, K, T, input_weight.has_value() ? C : J * H}, relevance);
  const Tensor first = empty({B, K, P}, relevance);
  const Tensor memory = empty({B, K, H}, relevance);
  const Tensor sums = empty(spread.has_value() ? Sizes{B, K, T} : Sizes{0}, relevance);
  prefer_huge_pages(flows.mutable_data_ptr(), flows.nbytes());
  if (B * K == 0 || H == 0 || P == 0) {
    first.zero_(), memory.zero_(), flows.zero_(), sums.zero_();
    return {flows, first, memory, sums};
  }
  if (relevance.scalar_type() == kFloat) {
    cpu::Recurrence<float> p{};
    p.batch = B, p.targets = K, p.steps = T, p.hidden = P, p.size = H, p.gates = G, p.blocks = J, p.output_blocks = O;
    p.channels = C, p.spreads = spread.has_value() ? S : 0;
    launch<float>(p, o, flows, first, memory, sums);
  } else {
    cpu::Recurrence<double> p{};
    p.batch = B, p.targets = K, p.steps = T, p.hidden = P, p.size = H, p.gates = G, p.blocks = J, p.output_blocks = O;
    p.channels = C, p.spreads = spread.has_value() ? S : 0;
    launch<double>(p, o, flows, first, memory, sums);
  }
  return {flows, first, memory, sums};
}

}  // namespace fastlrp::edge
