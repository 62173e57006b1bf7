#pragma once

#include "../common/rule.h"

namespace fastlrp::cpu {

using fastlrp::Rule;
template <class T>
using Coefficients = CoefficientsOf<T, T>;

template <class T>
void elementwise_coefficients(Rule rule, const Coefficients<T>& p);

}  // namespace fastlrp::cpu
