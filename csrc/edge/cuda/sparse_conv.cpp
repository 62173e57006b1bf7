#include "../../cuda/sparse_conv.h"

#include "../sparse_conv_arguments.h"
#include "sparse_views.h"

namespace fastlrp::edge::cuda {
namespace {

Sizes packed_size(int64_t groups, int64_t outs, int64_t ins, int64_t taps) { return {groups, taps, outs, ins}; }

constexpr Packing kPacking{4, 1, packed_size};

bool allows_tf32(bool linear) {
  return setting(linear ? "backends.cuda.matmul.fp32_precision" : "backends.cudnn.conv.fp32_precision") == "tf32";
}

// (B, K, channels, *S) with the channels innermost.
Tensor new_dense(const ConvCall& call, bool zero) {
  Sizes memory = with({call.batch, call.targets}, call.geometry.input_size);
  memory.push_back(*call.channels);
  const Tensor& like = call.arriving.values;
  return (zero ? zeros(memory, like) : empty(memory, like)).movedim(-1, 2);
}

template <class T>
kernels::SparseConv<T> kernel_arguments(const ConvCall& call, const ConvArguments& a) {
  kernels::SparseConv<T> p{};
  p.window = narrowed(a.window);
  p.batch = call.batch;
  p.targets = call.targets;
  p.groups = static_cast<int32_t>(a.groups);
  p.out_channels = static_cast<int32_t>(a.outs);
  p.in_channels = static_cast<int32_t>(a.ins);
  p.arriving = rows_of<T>(call.arriving, a.arriving);
  for (size_t i = 0; i < a.coefficients.size(); ++i) {
    p.products[i] = {data_of<T>(call.weights[i]), map_of<T>(a.coefficients[i])};
  }
  p.product_count = static_cast<int32_t>(a.coefficients.size());
  p.scales_leaving = call.scales_leaving;
  p.tensor_cores = call.arriving.values.scalar_type() != kFloat || allows_tf32(a.linear);
  p.leaving = a.leaving;
  p.leaving_entries = a.entries;
  if (!call.initial.empty()) {
    p.initial = a.initial->views<T>().front();
  }
  return p;
}

Tensor sparse_pack(const Tensor& weight) {
  check_unpacked({kCuda, "sparse_pack"}, weight);
  return weight.permute({0, 3, 1, 2}).contiguous();
}

Tensor sparse_conv_relevance(const ConvCall& call) {
  const Check check{kCuda, "sparse_conv_relevance"};
  REQUIRE_VALUE(!call.other.has_value(), check.op,
                ": other is for the CPU, on CUDA two products cost no more than one: give both coefficients and "
                "their weights");
  REQUIRE_VALUE(call.weights.size() <= kernels::kMaxProducts, check.op, ": expected at most ", kernels::kMaxProducts,
                " products, got ", call.weights.size());
  const ConvArguments a(check, call, kPacking);
  REQUIRE_VALUE(a.factors.size() <= kernels::kMaxFolds, check.op, ": expected at most ", kernels::kMaxFolds,
                " factors, got ", a.factors.size());
  const Tensor& values = call.arriving.values;
  const bool dense_result = call.channels.has_value();
  return with_type(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    kernels::SparseConv<T> p = kernel_arguments<T>(call, a);
    const bool direct = dense_result && kernels::writes_dense(p, *call.channels);
    Tensor dense, rows;
    if (dense_result) {
      dense = new_dense(call, direct && a.entries != a.leaving.positions * *call.channels);
    }
    if (direct) {
      p.dense = dense_of<T>(dense);
      p.factor = a.factors.empty() ? kernels::Map<T>{} : map_of<T>(a.factors.front());
    } else {
      rows = new_rows(a.entries, call.targets, values);
      p.rows = data_of<T>(rows);
      p.row_stride = rows.stride(0);
    }
    on_device(values, [&](Stream stream) {
      kernels::sparse_conv_relevance<T>(p, stream);
      if (dense_result && !direct) {
        kernels::SparseFold<T> fold{};
        fold.source = {p.rows, p.row_stride, nullptr, a.leaving};
        fold.folds = static_cast<int32_t>(a.folds);
        for (size_t i = 0; i < a.factors.size(); ++i) {
          fold.factors[i] = map_of<T>(a.factors[i]);
        }
        fold.has_factors = !a.factors.empty();
        fold.dense = dense_of<T>(dense);
        kernels::sparse_conv_fold<T>(fold, stream);
      }
    });
    return dense_result ? dense : rows;
  });
}

}  // namespace

const SparseConvFunctions kSparseConv{sparse_pack, sparse_conv_relevance};

}  // namespace fastlrp::edge::cuda
