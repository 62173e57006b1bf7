#include "conv_winograd_arguments.h"

#include "require.h"

namespace fastlrp::edge {

Sizes winograd_size(const Check& check, const Tensor& x, const Sizes& padding) {
  check.axes("padding", padding, 2, "x", 0);
  const Sizes size{x.size(2) + 2 * padding[0] - 2, x.size(3) + 2 * padding[1] - 2};
  REQUIRE_VALUE(size[0] > 0 && size[1] > 0 && padding[0] <= 2 && padding[1] <= 2, check.op,
                ": padding must be 0, 1 or 2 with a result that is not empty, got ", Ints(padding), " for x of ",
                x.sizes());
  return size;
}

void winograd_check_scale(const Check& check, const Tensor& scale, const Tensor& x) {
  check.like("scale", scale, x);
  const bool fits = scale.dim() == 4 && scale.size(0) > 0 && x.size(0) % scale.size(0) == 0 &&
                    scale.sizes().slice(1) == x.sizes().slice(1);
  REQUIRE_VALUE(fits || x.size(0) == 0, check.op, ": scale must have shape (N / K, Ci, H, W) for x of ", x.sizes(),
                ", got ", scale.sizes());
}

}  // namespace fastlrp::edge
