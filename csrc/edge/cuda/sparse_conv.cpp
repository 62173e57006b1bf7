#include "sparse_conv.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../../cuda/sparse_conv.h"

namespace fastlrp::edge::cuda {
namespace {

bool allows_tf32(bool linear) {
  return linear ? at::globalContext().allowTF32CuBLAS() : at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
}

// (B, K, channels, *S) with the channels innermost.
at::Tensor new_dense(int64_t batch, int64_t targets, int64_t channels, const std::vector<int64_t>& size, bool zero,
                     const at::TensorOptions& options) {
  std::vector<int64_t> memory{batch, targets};
  memory.insert(memory.end(), size.begin(), size.end());
  memory.push_back(channels);
  return (zero ? at::zeros(memory, options) : at::empty(memory, options)).movedim(-1, 2);
}

}  // namespace

at::Tensor sparse_pack(const at::Tensor& weight) {
  constexpr const char* op = "sparse_pack";
  check_values(op, "weight", weight);
  TORCH_CHECK_VALUE(weight.dim() == 4, op, ": weight must have shape (groups, Co, Ci, taps), got ", weight.sizes());
  TORCH_CHECK_VALUE(weight.size(1) >= 1 && weight.size(2) >= 1, op, ": weight must have channels on both sides, got ",
                    weight.sizes());
  return weight.permute({0, 3, 1, 2}).contiguous();
}

at::Tensor sparse_conv_relevance(const RowTensors& arriving, int64_t batch, int64_t targets,
                                 const std::vector<at::Tensor>& coefficients, const std::vector<at::Tensor>& weights,
                                 const std::vector<int64_t>& channels_per_group, const PatternTensors& leaving,
                                 const std::vector<int64_t>& input_size, const std::vector<int64_t>& output_size,
                                 const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                 bool transposed, std::optional<int64_t> channels,
                                 const std::vector<at::Tensor>& factors_, const std::vector<SummandTensors>& initial,
                                 const OptionalTensor& other) {
  constexpr const char* op = "sparse_conv_relevance";
  const at::Tensor& values = std::get<0>(arriving);
  check_values(op, "values", values);
  TORCH_CHECK_VALUE(targets >= 0, op, ": targets must not be negative, got ", targets);
  TORCH_CHECK_VALUE(batch >= 0, op, ": batch must not be negative, got ", batch);
  TORCH_CHECK_VALUE(!other.has_value(), op,
                    ": other is for the CPU, on CUDA two products cost no more than one: give both coefficients and "
                    "their weights");
  const kernels::Window window =
      window_of(op, input_size, output_size, kernel_size, stride, padding, dilation, transposed);
  const int64_t taps = int64_t{window.taps[0]} * window.taps[1] * window.taps[2];
  const int64_t inputs = inputs_of(window), outputs = outputs_of(window);
  TORCH_CHECK_VALUE(!weights.empty() && weights.size() == coefficients.size() && channels_per_group.size() == 2, op,
                    ": expected a coefficient for each weight, and channels per group on both sides");
  TORCH_CHECK_VALUE(weights.size() <= kernels::kMaxProducts, op, ": expected at most ", kernels::kMaxProducts,
                    " products, got ", weights.size());
  const at::Tensor& first = weights.front();
  const bool linear = first.dim() == 2;
  TORCH_CHECK_VALUE(linear ? input_size.empty() : first.dim() == 4 && first.size(1) == taps, op,
                    ": weights must be packed by sparse_pack, or (Co, Ci) of a linear layer");
  const int64_t groups = linear ? 1 : first.size(0), outs = channels_per_group[0], ins = channels_per_group[1];
  TORCH_CHECK_VALUE(first.size(-2) == outs && first.size(-1) == ins && groups >= 1 && outs >= 1 && ins >= 1, op,
                    ": channels per group do not fit the packed weight");
  // Each before it is multiplied.
  TORCH_CHECK_VALUE(std::max({groups, outs, ins, taps}) <= INT32_MAX && groups * outs <= INT32_MAX &&
                        groups * ins <= INT32_MAX / kernels::kLanes && groups * outs * taps <= INT32_MAX,
                    op, ": channels, and outputs times taps, must be below 2^31, input channels below 2^27");
  std::vector<at::Tensor> maps;
  for (const at::Tensor& weight : weights) {
    check_like(op, "weight", weight, values);
    TORCH_CHECK_VALUE(weight.sizes() == first.sizes() && weight.is_contiguous(), op,
                      ": all weights must be contiguous and have the same shape");
  }
  for (const at::Tensor& coefficient : coefficients) {
    check_like(op, "coefficient", coefficient, values);
    TORCH_CHECK_VALUE(coefficient.dim() >= 2 && coefficient.size(0) == batch && coefficient.size(1) == groups * outs &&
                          spatial_of(coefficient, 2) == outputs,
                      op, ": coefficient must have shape (B, Co, *S'), got ", coefficient.sizes());
    maps.push_back(flattened(coefficient.resolve_neg(), 2));
  }
  const kernels::Pattern pattern = view(op, std::get<0>(leaving), std::get<1>(leaving), values);
  const int64_t entries = std::get<1>(leaving).numel();
  TORCH_CHECK_VALUE(pattern.positions == batch * inputs && std::get<2>(arriving).numel() == batch * outputs + 1, op,
                    ": patterns have ", std::get<2>(arriving).numel() - 1, " and ", pattern.positions,
                    " positions, sizes ask for ", batch * outputs, " and ", batch * inputs);
  std::vector<at::Tensor> factors;
  int64_t folds = 1;
  if (channels.has_value()) {
    folds = groups * ins / std::max<int64_t>(1, *channels);
    TORCH_CHECK_VALUE(*channels >= 1 && folds * *channels == groups * ins &&
                          (factors_.empty() || static_cast<int64_t>(factors_.size()) == folds),
                      op, ": channels must divide the input channels, with a factor for each fold");
    TORCH_CHECK_VALUE(factors_.size() <= kernels::kMaxFolds, op, ": expected at most ", kernels::kMaxFolds,
                      " factors, got ", factors_.size());
    for (const at::Tensor& factor : factors_) {
      check_like(op, "factor", factor, values);
      TORCH_CHECK_VALUE(factor.dim() >= 2 && factor.size(0) == batch && factor.size(1) == *channels &&
                            spatial_of(factor, 2) == inputs,
                        op, ": factor must have shape (B, channels, *S), got ", factor.sizes());
      factors.push_back(flattened(factor.resolve_neg(), 2));
    }
  }
  TORCH_CHECK_VALUE(channels.has_value() || factors_.empty(), op, ": factors belong to a dense result: give channels");
  TORCH_CHECK_VALUE(initial.size() <= 1 && (initial.empty() || !channels.has_value()), op,
                    ": a compact result can begin with one register, a dense one with none");
  const Summands beginning(op, initial, values, batch, pattern.positions);
  return with_type(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    kernels::SparseConv<T> p{};
    p.window = window;
    p.batch = batch;
    p.targets = targets;
    p.groups = static_cast<int32_t>(groups);
    p.out_channels = static_cast<int32_t>(outs);
    p.in_channels = static_cast<int32_t>(ins);
    p.arriving = view<T>(op, arriving, targets);
    for (size_t i = 0; i < maps.size(); ++i) {
      p.products[i] = {data_of<T>(weights[i]), map_of<T>(maps[i])};
    }
    p.product_count = static_cast<int32_t>(maps.size());
    p.tensor_cores = values.scalar_type() != at::kFloat || allows_tf32(linear);
    p.leaving = pattern;
    p.leaving_entries = entries;
    if (!initial.empty()) {
      p.initial = beginning.views<T>(op, targets).front();
    }
    const bool direct = channels.has_value() && kernels::writes_dense(p, *channels);
    at::Tensor dense, rows;
    if (channels.has_value()) {
      dense = new_dense(batch, targets, *channels, input_size, direct && entries != batch * inputs * *channels,
                        values.options());
    }
    if (direct) {
      p.dense = dense_of<T>(dense);
      p.factor = factors.empty() ? kernels::Map<T>{} : map_of<T>(factors.front());
    } else {
      rows = new_rows(entries, targets, values.options());
      p.rows = data_of<T>(rows);
      p.row_stride = rows.stride(0);
    }
    on_device(values, [&](Stream stream) {
      kernels::sparse_conv_relevance<T>(p, stream);
      if (channels.has_value() && !direct) {
        kernels::SparseFold<T> fold{};
        fold.source = {p.rows, p.row_stride, nullptr, pattern};
        fold.folds = static_cast<int32_t>(folds);
        for (size_t i = 0; i < factors.size(); ++i) {
          fold.factors[i] = map_of<T>(factors[i]);
        }
        fold.has_factors = !factors.empty();
        fold.dense = dense_of<T>(dense);
        kernels::sparse_conv_fold<T>(fold, stream);
      }
    });
    return channels.has_value() ? dense : rows;
  });
}

}  // namespace fastlrp::edge::cuda
