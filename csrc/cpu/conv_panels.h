// Weights as small products read them (conv_panel_products.inc).
#pragma once

#include <cstdint>

namespace fastlrp::cpu {

// Columns of packed weights that lie side by side, one panel with all its rows behind the other.
constexpr int64_t kPanel = 16;

}  // namespace fastlrp::cpu
