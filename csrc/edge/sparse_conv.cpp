
#include <algorithm>

#include "../common/bf16_unit.h"
#include "../cpu/sparse.h"
#include "sparse_conv_arguments.h"
#include "sparse_rows.h"

namespace fastlrp::edge {
namespace {

// As many channels per block as keep a float32 slab of the weight within 32 KB.
constexpr int64_t kBlockOut = 128, kBlockIn = 64, kPairsOut = 256;

int64_t blocks(int64_t channels, int64_t block) { return (channels + block - 1) / block; }

// (groups, input blocks, taps, output blocks, block_out, block_in)
template <int64_t most_out>
Sizes packed_size(int64_t groups, int64_t outs, int64_t ins, int64_t taps) {
  const int64_t block_out = std::min(most_out, outs), block_in = std::min(kBlockIn, ins);
  return {groups, blocks(ins, block_in), taps, blocks(outs, block_out), block_out, block_in};
}

// With block_out innermost, and a seventh axis by which the layouts differ.
Sizes tiles_size(int64_t groups, int64_t outs, int64_t ins, int64_t taps) {
  Sizes size = packed_size<kPairsOut>(groups, outs, ins, taps);
  std::swap(size[4], size[5]);
  size.push_back(1);
  return size;
}

constexpr Packing kPacking{6, 2, packed_size<kBlockOut>, false, true}, kPairs{6, 2, packed_size<kPairsOut>, true},
    kTiles{7, 2, tiles_size, true};

bool is_narrow(const ConvCall& call) {
  return !call.weights.empty() && call.weights.front().scalar_type() == kBFloat16;
}

const Packing& packing_of(const ConvCall& call) {
  return !is_narrow(call) ? kPacking : call.weights.front().dim() == kTiles.axes ? kTiles : kPairs;
}

cpu::Blocks packed_blocks(const Tensor& packed, const ConvArguments& a) {
  const int64_t slab = packed.size(4) * packed.size(5);
  if (packed.dim() == kTiles.axes) {
    return {packed.size(0),
            a.outs,
            a.ins,
            packed.size(5),
            packed.size(4),
            packed.size(2) * packed.size(3) * slab,
            packed.size(3) * slab,
            slab,
            1,
            packed.size(5),
            true};
  }
  return {packed.size(0),        a.outs,         a.ins,
          packed.size(4),        packed.size(5), packed.size(2) * packed.size(3) * slab,
          packed.size(3) * slab, slab,           packed.size(5)};
}

// Few rows at a time, so that each can be read as a stream. Of a transposed weight the streams are columns, which are
// shorter: some are open at once.
cpu::Blocks linear_blocks(const ConvArguments& a) {
  if (a.turned) {
    constexpr int64_t kLong = 256, kOpen = 64;
    const int64_t out = std::min(kLong, a.outs), in = std::min(kOpen, a.ins);
    return {1, a.outs, a.ins, out, in, in * a.outs, 0, out, 1, a.outs};
  }
  constexpr int64_t kOut = 64, kIn = 2048;
  const int64_t out = std::min(kOut, a.outs), in = std::min(kIn, a.ins);
  return {1, a.outs, a.ins, out, in, in, 0, out * a.ins, a.ins};
}

// Kernels number the elements of a block of the weight with 32 bits, those of a row of taps and of the second weight
// included.
void check_numbers(const Check& check, const ConvCall& call, const ConvArguments& a, const cpu::Blocks& b) {
  constexpr int64_t kTile = 64;  // more positions than a tile has along the last axis
  REQUIRE_VALUE((a.window.taps[2] + kTile) * b.tap_step <= INT32_MAX, check.op,
                ": weights must have fewer than 2^31 elements for a row of taps, got ", call.weights.front().sizes());
  if (!call.other.has_value()) {
    return;
  }
  const Tensor &first = call.weights[0], &second = call.weights[1];
  REQUIRE_VALUE(static_cast<const char*>(second.const_data_ptr()) ==
                        static_cast<const char*>(first.const_data_ptr()) + first.nbytes() &&
                    first.numel() <= INT32_MAX / 2 && a.ins * a.outs > 1,
                check.op, ": the two weights that other chooses from must lie one behind the other in memory");
}

// (G, Co, Ci, T) -> (G, Ob, o, Ib, i, T), blocks filled up with zeros, with its axes in this order.
Tensor packed(const Tensor& weight, int64_t most_out, const Sizes& order) {
  const int64_t groups = weight.size(0), out = weight.size(1), in = weight.size(2), taps = weight.size(3);
  const int64_t block_out = std::min(most_out, out), block_in = std::min(kBlockIn, in);
  const int64_t outs = round_up(out, block_out), ins = round_up(in, block_in);
  Tensor full = weight;
  if (outs != out || ins != in) {
    full = zeros({groups, outs, ins, taps}, weight);
    full.narrow(1, 0, out).narrow(2, 0, in).copy_(weight);
  }
  return full.reshape({groups, outs / block_out, block_out, ins / block_in, block_in, taps})
      .permute(order)
      .contiguous();
}

template <class T, class Number>
void compute(const ConvCall& call, const ConvArguments& a, const cpu::Blocks& blocks, const Tensor& result) {
  cpu::SparseConv<T, Number> p{};
  p.initial = a.initial->views<T>();
  p.window = a.window;
  p.blocks = blocks;
  p.batch = call.batch;
  p.targets = call.targets;
  p.arriving = rows_of<T>(call.arriving, a.arriving);
  for (size_t i = 0; i < a.coefficients.size(); ++i) {
    p.products.push_back({memory_of<const Number>(call.weights[i]), map_of<T>(a.coefficients[i])});
  }
  if (a.other.defined()) {
    p.other = map_of<T>(a.other);
    p.other_weight = memory_of<const Number>(call.weights[1]);
  }
  p.leaving = a.leaving;
  p.result = result.mutable_data_ptr<T>();
  p.dense = call.channels.has_value();
  if (p.dense) {
    p.channels = *call.channels;
    p.dense_batch = result.stride(0), p.dense_target = result.stride(1), p.dense_channel = result.stride(2);
    p.dense_position = position_stride(result, 3);
    for (const Tensor& factor : a.factors) {
      p.factors.push_back(map_of<T>(factor));
    }
  } else {
    p.result_stride = result.stride(0);
  }
  cpu::sparse_conv_relevance(p);
}

Tensor sparse_pack(const Tensor& weight) {
  check_unpacked({kCpu, "sparse_pack"}, weight);
  return packed(weight, kBlockOut, {0, 3, 5, 1, 2, 4});
}

Tensor sparse_conv_relevance(const ConvCall& call) {
  const Check check{kCpu, "sparse_conv_relevance"};
  const bool narrow = is_narrow(call);
  if (narrow) {
    check.dtype("values", call.arriving.values, kFloat);
  }
  REQUIRE_VALUE(!call.scales_leaving, check.op,
                ": scales_leaving is for CUDA; here give ones, and multiply the result in sparse_sum");
  const ConvArguments a(check, call, packing_of(call));
  REQUIRE_VALUE(!narrow || a.outs * a.ins > 1 || a.groups == 1, check.op,
                ": products of bfloat16 need more than one channel per group");
  const cpu::Blocks blocks = a.linear ? linear_blocks(a) : packed_blocks(call.weights.front(), a);
  check_numbers(check, call, a, blocks);
  const Tensor& values = call.arriving.values;
  const Tensor result = call.channels.has_value()
                            ? empty(with({call.batch, call.targets, *call.channels}, call.geometry.input_size), values)
                            : new_rows(a.entries, call.targets, values);
  if (narrow) {
    compute<float, Bf16>(call, a, blocks, result);
    return result;
  }
  dispatch(values, [&](auto zero) { compute<decltype(zero), decltype(zero)>(call, a, blocks, result); });
  return result;
}

}  // namespace

const SparseConvFunctions kSparseConv{sparse_pack, sparse_conv_relevance};

Tensor sparse_pack_pairs(const Tensor& weight) {
  const Check check{kCpu, "sparse_pack_pairs"};
  check_unpacked(check, weight);
  check.dtype("weight", weight, kFloat);
  REQUIRE_VALUE(weight.size(1) * weight.size(2) > 1 || weight.size(0) == 1, check.op,
                ": one channel per group makes no pairs, got ", weight.sizes());
  const bool tiles = has_tiles(bf16_unit());
  const Tensor found =
      packed(weight.to(kBFloat16), kPairsOut, tiles ? Sizes{0, 3, 5, 1, 4, 2} : Sizes{0, 3, 5, 1, 2, 4});
  return tiles ? found.unsqueeze(6) : found;
}

}  // namespace fastlrp::edge
