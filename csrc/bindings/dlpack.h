// Arrays in device memory, in and out: DLPack and `__cuda_array_interface__`.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bindings/common.h"
#include "cuda/encoder.h"

namespace distilfast::cuda {

// The structs of DLPack (dlpack.h 0.8), which every array library agrees on.
struct DLDevice {
  std::int32_t type, id;
};
struct DLDataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t dimensions;
  DLDataType type;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

// fp32 [rows, columns] in device memory, which lives as long as anyone holds it; exported by `__cuda_array_interface__`
// and DLPack.
class DeviceArray {
 public:
  DeviceArray(std::shared_ptr<DeviceOutput> owner, const float* data, Index rows, Index columns)
      : owner_(std::move(owner)), data_(data), shape_{rows, columns} {}

  py::tuple shape() const { return py::make_tuple(shape_[0], shape_[1]); }

  void wait() const {
    const ReleasedGil released;
    owner_->wait();
  }

  py::dict cuda_array_interface() const {
    py::dict facts;
    facts["shape"] = shape();
    facts["typestr"] = "<f4";
    facts["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(data_), false);
    facts["strides"] = py::none();
    // The stream on which the values are ready: who reads them on another one has to order that with it. 0 is not
    // allowed.
    facts["stream"] = std::max<StreamHandle>(owner_->caller(), 1);
    facts["version"] = 3;
    return facts;
  }

  py::tuple dlpack_device() const { return py::make_tuple(dlpack_device_type, owner_->device()); }

  // `stream`: the reader's; none: the default one, as DLPack has it; -1: it needs no order.
  py::capsule dlpack(const std::optional<std::intptr_t>& stream) const {
    if (stream != -1) owner_->share_with(static_cast<StreamHandle>(stream.value_or(0)));
    struct Exported {
      DLManagedTensor managed;
      DeviceArray array;
    };
    auto* exported = new Exported{{}, *this};
    DLTensor& tensor = exported->managed.tensor;
    tensor = {const_cast<float*>(data_),
              {dlpack_device_type, owner_->device()},
              2,
              {2, 32, 1},
              exported->array.shape_,
              nullptr,
              0};
    exported->managed.context = exported;
    exported->managed.deleter = [](DLManagedTensor* self) { delete static_cast<Exported*>(self->context); };
    // A reader renames the capsule and deletes the tensor itself; a capsule that no one has read does it here.
    return py::capsule(&exported->managed, "dltensor", [](PyObject* capsule) {
      if (!PyCapsule_IsValid(capsule, "dltensor")) return;
      auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
      managed->deleter(managed);
    });
  }

 private:
  std::shared_ptr<DeviceOutput> owner_;
  const float* data_;
  Index shape_[2];
};

// ---- a caller's integers in device memory

// One dimension of int32 or int64, which is held as long as this lives.
class DeviceIntegers {
 public:
  // `stream`: where they are read. Throws std::invalid_argument, which calls them `name`.
  DeviceIntegers(const py::object& array, const std::string& name, int device, StreamHandle stream)
      : name_(name), device_(device), held_(array) {
    if (py::hasattr(array, "__dlpack__") && py::hasattr(array, "__dlpack_device__"))
      read_dlpack(array, stream);
    else if (py::hasattr(array, "__cuda_array_interface__"))
      read_interface(array.attr("__cuda_array_interface__"));
    else
      refuse("has neither DLPack nor __cuda_array_interface__; an array on the GPU is needed");
    if (reinterpret_cast<std::uintptr_t>(values_.data) % (values_.is_int64 ? 8 : 4))
      refuse("is not aligned to its numbers");
  }
  DeviceIntegers(const DeviceIntegers&) = delete;
  DeviceIntegers& operator=(const DeviceIntegers&) = delete;

  const Integers& values() const { return values_; }
  Index size() const { return size_; }
  const std::optional<StreamHandle>& producer() const { return producer_; }

 private:
  struct Delete {
    void operator()(DLManagedTensor* tensor) const {
      if (tensor->deleter) tensor->deleter(tensor);
    }
  };

  [[noreturn]] void refuse(const std::string& why) const { throw std::invalid_argument(name_ + " " + why + "."); }

  void check_device(int device) const {
    if (device != device_)
      refuse("lies on device " + std::to_string(device) + " and the model on device " + std::to_string(device_));
  }
  void check_shape(std::size_t dimensions, Index stride, Index step) const {
    if (dimensions != 1) refuse("has " + std::to_string(dimensions) + " dimensions and not 1");
    if (size_ > 1 && stride != step) refuse("is not contiguous");
  }

  void read_dlpack(const py::object& array, StreamHandle stream) {
    const auto [type, device] = array.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    if (type != dlpack_device_type) refuse("does not lie on a CUDA device");
    check_device(device);
    // DLPack calls the default stream 1; 0 may be taken for any.
    const bool has_streams = dlpack_device_type == 2;
    const py::object reader = has_streams ? py::cast(std::max<StreamHandle>(stream, 1)) : py::none();
    const py::capsule capsule = array.attr("__dlpack__")(py::arg("stream") = reader);
    managed_.reset(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor")));
    if (!managed_) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    const DLTensor& tensor = managed_->tensor;
    if (tensor.type.code != 0 || tensor.type.lanes != 1 || (tensor.type.bits != 32 && tensor.type.bits != 64))
      refuse("does not hold int32 or int64");
    size_ = tensor.dimensions > 0 ? tensor.shape[0] : 0;
    check_shape(static_cast<std::size_t>(tensor.dimensions), tensor.strides ? tensor.strides[0] : 1, 1);
    values_ = {static_cast<const char*>(tensor.data) + tensor.byte_offset, tensor.type.bits == 64};
  }

  void read_interface(const py::dict& facts) {
    const auto type = facts["typestr"].cast<std::string>();
    if (type != "<i4" && type != "<i8") refuse("does not hold int32 or int64");
    if (facts.contains("mask") && !facts["mask"].is_none()) refuse("has a mask");
    const py::tuple shape = facts["shape"];
    const bool strided = facts.contains("strides") && !facts["strides"].is_none();
    const Index step = type == "<i8" ? 8 : 4;
    size_ = shape.empty() ? 0 : shape[0].cast<Index>();
    check_shape(shape.size(), strided && size_ > 1 ? facts["strides"].cast<py::tuple>()[0].cast<Index>() : step, step);
    values_ = {reinterpret_cast<const void*>(facts["data"].cast<py::tuple>()[0].cast<std::uintptr_t>()), step == 8};
    if (size_ == 0) return;  // an empty array has no address
    const std::optional<int> device = device_of(values_.data);
    if (!device) refuse("does not lie on a CUDA device");
    check_device(*device);
    if (facts.contains("stream") && !facts["stream"].is_none()) producer_ = facts["stream"].cast<StreamHandle>();
  }

  std::string name_;
  int device_;
  py::object held_;
  std::unique_ptr<DLManagedTensor, Delete> managed_;
  Integers values_{};
  Index size_ = 0;
  std::optional<StreamHandle> producer_;
};

}  // namespace distilfast::cuda
