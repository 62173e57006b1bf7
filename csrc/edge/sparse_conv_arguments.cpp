#include "sparse_conv_arguments.h"

#include <algorithm>

namespace fastlrp::edge {
namespace {

// A map (B, channels, *S) of so many places, as kernels address it.
Tensor map_argument(const Check& check, const char* name, const char* shape, const Tensor& map, const Tensor& like,
                    int64_t batch, int64_t channels, int64_t places) {
  check.like(name, map, like);
  REQUIRE_VALUE(map.dim() >= 2 && map.size(0) == batch && map.size(1) == channels && spatial_of(map, 2) == places,
                check.op, ": ", name, " must have shape ", shape, ", got ", map.sizes(), " for a batch of ", batch,
                ", ", channels, " channels and ", places, " places");
  return flattened(map.resolve_neg(), 2);
}

bool is_turned(const Tensor& matrix) { return matrix.stride(0) == 1 && matrix.stride(1) == matrix.size(0); }

void check_weights(const Check& check, const ConvCall& call, const Packing& packing, ConvArguments& a) {
  const char* op = check.op;
  REQUIRE_VALUE(!call.weights.empty() && call.weights.size() == call.coefficients.size() + call.other.has_value() &&
                    call.channels_per_group.size() == 2,
                op, ": expected a coefficient for each weight, and channels per group on both sides, got ",
                call.coefficients.size(), " coefficients, ", call.weights.size(), " weights and ",
                Ints(call.channels_per_group));
  const Tensor& first = call.weights.front();
  check.tensor("weight", first);
  a.linear = first.dim() == 2 && !packing.narrow;
  REQUIRE_VALUE(a.linear ? call.geometry.input_size.empty()
                         : first.dim() == packing.axes && first.size(packing.taps_axis) == a.taps,
                op, ": weights must be packed by sparse_pack, or (Co, Ci) of a linear layer, got ", first.sizes(),
                " for ", a.taps, " taps");
  a.groups = a.linear ? 1 : first.size(0), a.outs = call.channels_per_group[0], a.ins = call.channels_per_group[1];
  constexpr int64_t most = INT32_MAX;
  a.turned = a.linear && packing.takes_turned && !first.is_contiguous();
  REQUIRE_VALUE(!a.linear || (first.size(0) == a.outs && first.size(1) == a.ins && a.outs >= 1 && a.ins >= 1 &&
                              (a.turned ? a.outs : a.ins) <= most / 64),
                op, ": a linear weight must be (Co, Ci) with rows (columns of one that lies transposed in memory) of ",
                "fewer than 2^25 numbers, got ", first.sizes(), " for ", a.outs, " and ", a.ins);
  // Each before it is multiplied.
  REQUIRE_VALUE(a.groups >= 1 && a.outs >= 1 && a.ins >= 1 && std::max({a.groups, a.outs, a.ins}) <= most &&
                    (a.linear || first.sizes() == packing.size(a.groups, a.outs, a.ins, a.taps)),
                op, ": channels per group do not fit the packed weight, got ", Ints(call.channels_per_group), " and ",
                first.sizes());
  REQUIRE_VALUE(a.groups * a.outs <= most && a.groups * a.ins <= most / kLanes && a.groups * a.outs * a.taps <= most,
                op, ": channels, and outputs times taps, must be below 2^31, input channels below 2^27, got ", a.groups,
                " groups of ", a.outs, " and ", a.ins, " channels with ", a.taps, " taps");
  for (const Tensor& weight : call.weights) {
    if (packing.narrow) {
      check.dtype("weight", weight, kBFloat16);
      check.beside("weight", weight, call.arriving.values);
    } else {
      check.like("weight", weight, call.arriving.values);
    }
    REQUIRE_VALUE(weight.sizes() == first.sizes() && (a.turned ? is_turned(weight) : weight.is_contiguous()), op,
                  ": all weights must be contiguous",
                  packing.takes_turned && a.linear ? ", or all of them transposes of contiguous ones," : "",
                  " and have the same shape, got ", weight.sizes(), " with strides ", weight.strides(), " and ",
                  first.sizes(), " with ", first.strides());
  }
}

void check_factors(const Check& check, const ConvCall& call, int64_t inputs, ConvArguments& a) {
  const char* op = check.op;
  REQUIRE_VALUE(call.channels.has_value() || call.factors.empty(), op,
                ": factors belong to a dense result: give channels");
  if (!call.channels.has_value()) {
    return;
  }
  const int64_t channels = *call.channels, all = a.groups * a.ins;
  a.folds = all / std::max<int64_t>(1, channels);
  REQUIRE_VALUE(channels >= 1 && channels <= all && all % channels == 0 &&
                    (call.factors.empty() || static_cast<int64_t>(call.factors.size()) == a.folds),
                op, ": channels must divide the input channels, with a factor for each fold, got ", channels, " of ",
                all, " and ", call.factors.size(), " factors");
  for (const Tensor& factor : call.factors) {
    a.factors.push_back(
        map_argument(check, "factor", "(B, channels, *S)", factor, call.arriving.values, call.batch, channels, inputs));
  }
}

}  // namespace

ConvArguments::ConvArguments(const Check& check, const ConvCall& call, const Packing& packing) {
  const Tensor& values = call.arriving.values;
  check.values("values", values);
  check.not_negative("targets", call.targets);
  check.not_negative("batch", call.batch);
  window = window_of(check, call.geometry);
  taps = window.taps[0] * window.taps[1] * window.taps[2];
  const int64_t inputs = window.inputs(), outputs = window.outputs();
  check_weights(check, call, packing, *this);
  const bool of_leaving = call.scales_leaving;
  for (const Tensor& coefficient : call.coefficients) {
    coefficients.push_back(map_argument(check, "coefficient", of_leaving ? "(B, Ci, *S)" : "(B, Co, *S')", coefficient,
                                        values, call.batch, groups * (of_leaving ? ins : outs),
                                        of_leaving ? inputs : outputs));
  }
  if (call.other.has_value()) {
    check.like("other", *call.other, values);
    REQUIRE_VALUE(call.weights.size() == 2 && call.coefficients.front().sizes() == call.other->sizes(), check.op,
                  ": other needs two weights, and the coefficient's shape ", call.coefficients.front().sizes(),
                  ", got ", call.other->sizes());
    other = flattened(call.other->resolve_neg(), 2);
  }
  const char* op = check.op;
  check.tensor("offsets", call.leaving.offsets);
  check.tensor("offsets", call.arriving.offsets);
  const int64_t below = call.leaving.offsets.numel() - 1, above = call.arriving.offsets.numel() - 1;
  REQUIRE_VALUE(below == times(call.batch, inputs) && above == times(call.batch, outputs), op, ": patterns have ",
                above, " and ", below, " positions, sizes ask for ", times(call.batch, outputs), " and ",
                times(call.batch, inputs));
  check_factors(check, call, inputs, *this);
  REQUIRE_VALUE(call.initial.size() <= 1 && (call.initial.empty() || !call.channels.has_value()), op,
                ": a compact result can begin with one register, a dense one with none");
  arriving = pattern_of(check, "arriving", {call.arriving.offsets, call.arriving.channels}, values, groups * outs);
  check_rows(check, "arriving", call.arriving, call.targets);
  leaving = pattern_of(check, "leaving", call.leaving, values, groups * ins);
  entries = call.leaving.channels.numel();
  initial.emplace(check, call.initial, values, call.batch, call.targets, below, groups * ins);
}

}  // namespace fastlrp::edge
