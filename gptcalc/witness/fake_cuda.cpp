// Lets a CPU-only torch build a graph over fake tensors on "cuda": autograd asks for the device's guard and for hooks,
// and does without values. Loaded before torch is imported, since the hooks are looked up once.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {
// Found in its registry by this name.
struct CUDAHooks final : public CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
} // namespace at

namespace {
using namespace c10;
const Device kDevice(DeviceType::CUDA, 0);
const Stream kStream(Stream::DEFAULT, kDevice);

struct Guard final : public impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return kStream; }
  Stream getDefaultStream(Device) const override { return kStream; }
  Stream exchangeStream(Stream) const override { return kStream; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
} // namespace

// What only a CUDA build registers: with kernels of its own the op is not decomposed, and torch's derivative of it, which
// every build has, decides what is kept. The shapes of the results are those of layer_norm_kernel.cu.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

namespace {
std::tuple<at::Tensor, at::Tensor> norm(
    const at::Tensor& x, at::IntArrayRef, const std::optional<at::Tensor>&, std::optional<double>) {
  std::vector<int64_t> rows(x.sizes().begin(), x.sizes().end());
  rows.back() = 1;
  return {at::empty_like(x), at::empty(rows, x.options().dtype(at::kFloat))};
}

std::tuple<at::Tensor, at::Tensor> norm_backward(
    const at::Tensor&, const at::Tensor& x, at::IntArrayRef, const at::Tensor&,
    const std::optional<at::Tensor>& weight, std::array<bool, 2>) {
  return {at::empty_like(x), weight.has_value() && weight->defined() ? at::empty_like(*weight) : at::Tensor()};
}

at::Tensor activation_backward(const at::Tensor&, const at::Tensor& x) { return at::empty_like(x); }

void enter(torch::Library& m) {
  m.impl("_fused_rms_norm", TORCH_FN(norm));
  m.impl("_fused_rms_norm_backward", TORCH_FN(norm_backward));
  m.impl("mish_backward", TORCH_FN(activation_backward));
}
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  enter(m);
  m.impl("silu_backward", TORCH_FN(activation_backward));
}
TORCH_LIBRARY_IMPL(aten, Meta, m) { enter(m); }
} // namespace
