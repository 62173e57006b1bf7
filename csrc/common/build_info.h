#pragma once

#include <map>
#include <string>

namespace fastlrp {

// How the extension was built and which instructions it takes here, in words, for `python -m fastlrp.info`.
std::map<std::string, std::string> build_info();

}  // namespace fastlrp
