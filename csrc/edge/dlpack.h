// The part of DLPack's C interface, version 1, that tensors are exchanged by: https://dmlc.github.io/dlpack/latest.
// PyTorch has it as the capsule `torch.Tensor.__dlpack_c_exchange_api__`. Layouts are fixed by that interface.
#pragma once

#include <cstdint>

namespace fastlrp::edge::dlpack {

constexpr uint32_t kMajor = 1;
constexpr int32_t kCpu = 1, kCuda = 2;                                                    // types of devices
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6;  // codes of dtypes

struct Version {
  uint32_t major, minor;
};

struct Device {
  int32_t type, index;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct View {
  void* data;
  Device device;
  int32_t axes;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct Managed {
  Version version;
  void* owner;
  void (*deleter)(Managed* self);
  uint64_t flags;
  View view;
};

struct Exchange {
  Version version;
  Exchange* previous;  // of an older major version
  int (*allocate)(View* prototype, Managed** out, void* context, void (*set_error)(void*, const char*, const char*));
  int (*managed_of)(void* object, Managed** out);
  int (*object_of)(Managed* taken, void** out);
  int (*view_of)(void* object, View* out);  // of the object's own memory, sizes and strides
  int (*current_stream)(int32_t device_type, int32_t device, void** out);
};

}  // namespace fastlrp::edge::dlpack
