// Every operator on the devices: it runs on the CPU over the same bytes. What a GPU refuses is refused here, too:
// tensors of two devices in one operator; and what waits for the device, where torch.cuda.set_sync_debug_mode asks for
// it or a graph is being captured.
//
// A capture runs what it records and then puts all memory back as it was; a replay runs it again, over the same bytes.
#include "host_device.h"

#include <ATen/native/Resize.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <set>
#include <unordered_set>

namespace host_device {
namespace {

using torch::jit::Stack;

// ---- the same bytes, seen from the other side

struct Kept {
  c10::Storage storage;
  void *start;
};

void drop(void *kept) { delete static_cast<Kept *>(kept); }

void drop_from_device(void *kept) {
  blocks().remove(static_cast<Kept *>(kept)->start);
  drop(kept);
}

at::Tensor over(c10::Storage storage, const at::Tensor &t, Device device) {
  const auto key = device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), t.dtype());
  auto *impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return made;
}

at::Tensor over_the_same_bytes(const at::Tensor &t, Device device) {
  const size_t bytes = t.storage().nbytes();
  void *start = t.storage().mutable_data();
  if (device.is_cuda()) blocks().add(start, bytes, device.index());
  c10::DataPtr data(start, new Kept{t.storage(), start}, device.is_cuda() ? &drop_from_device : &drop, device);
  auto *allocator = device.is_cuda() ? device_memory() : c10::GetAllocator(DeviceType::CPU);
  return over(c10::Storage(c10::Storage::use_byte_size_t(), bytes, std::move(data), allocator, true), t, device);
}

at::Tensor on_host(const at::Tensor &t) { return over_the_same_bytes(t, Device(DeviceType::CPU)); }

// ---- graphs

struct Recorded {
  std::optional<c10::OperatorHandle> op;  // or else a launch of a kernel, which Python keeps
  Stack inputs, outputs;
  int launch = -1;
};

struct Graph {
  std::vector<Recorded> all;
  std::set<void *> memory;
};

using Launch = void (*)(int);
std::unique_ptr<Graph> capturing;
std::vector<std::unique_ptr<Graph>> graphs;
std::map<void *, std::vector<char>> before_capture;
Launch launch_again = nullptr;

// ---- what waits

// A flag that kernels set in the host's memory: the host sees it when it waits for the device, and not before, so that
// what relies on seeing it earlier fails always.
struct Flag {
  int *set_by_kernels, *seen_by_host;
};
std::vector<Flag> flags;

void publish_flags() {
  for (const Flag &flag : flags) {
    if (*flag.set_by_kernels) *flag.seen_by_host = std::exchange(*flag.set_by_kernels, 0);
  }
}

enum { ALLOW = 0, WARN = 1, REFUSE = 2 };
std::atomic<int> waiting{ALLOW};

void waits(const std::string &what) {
  TORCH_CHECK(!capturing, "CUDA error: operation not permitted when stream is capturing (", what, ")");
  TORCH_CHECK(waiting != REFUSE, "called a synchronizing CUDA operation: ", what);
  if (waiting == WARN) TORCH_WARN("called a synchronizing CUDA operation: ", what);
  publish_flags();
}

// Their results' sizes, or values, are for the host.
const std::unordered_set<std::string> WAIT = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::bincount", "aten::equal"};
// Indices may lie on the CPU.
const std::unordered_set<std::string> MIX = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"};

bool is_mask(const at::Tensor &t) { return t.scalar_type() == at::kBool || t.scalar_type() == at::kByte; }

// ---- one operator

class Call {
 public:
  Call(const c10::OperatorHandle &op, Stack *stack) : op(op), schema(op.schema()), stack(stack), name(schema.name()) {}

  void run() {
    if (WAIT.count(name)) waits(name);
    const size_t count = schema.arguments().size(), begin = stack->size() - count;
    for (size_t i = 0; i < count; i++) {
      const c10::AliasInfo *alias = schema.arguments()[i].alias_info();
      to_host((*stack)[begin + i], alias != nullptr && alias->isWrite());
    }
    for (size_t i = 0; i < count; i++) {
      c10::IValue &value = (*stack)[begin + i];
      const c10::Argument &argument = schema.arguments()[i];
      if (value.isGenerator() || (value.isNone() && argument.name() == "generator")) {
        const auto asked = value.isNone() ? std::nullopt : std::optional<at::Generator>(value.toGenerator());
        value = generator_on_host(asked, device ? device->index() : -1);
      }
      if (argument.name() == "device" && value.isDevice()) value = Device(DeviceType::CPU);
    }
    const Stack inputs(stack->begin() + begin, stack->end());
    {
      at::AutoDispatchBelowADInplaceOrView below;
      op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    }
    if (capturing) {
      Recorded done{op, inputs, Stack(stack->end() - schema.returns().size(), stack->end())};
      capturing->all.push_back(std::move(done));
    }
    give_back_what_was_resized();
    for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) to_device((*stack)[i]);
  }

 private:
  struct Pair {
    at::Tensor device, host;
  };

  at::Tensor host_of(const at::Tensor &t, bool may_be_there) {
    if (!t.defined()) return t;
    if (!t.is_cuda()) {
      TORCH_CHECK(may_be_there, "Expected all tensors to be on the same device, but found at least two devices, cuda and ",
                  t.device(), "! (", name, ")");
      return t;
    }
    TORCH_CHECK(!device || *device == t.device(), "Expected all tensors to be on the same device, but found at least two devices, ",
                *device, " and ", t.device(), "! (", name, ")");
    device = t.device();
    for (const Pair &pair : seen) {
      if (pair.device.is_same(t)) return pair.host;
    }
    // Views of one memory stay that on the host: operators refuse to write to a view while they read from another.
    const auto beside = std::find_if(seen.begin(), seen.end(), [&](const Pair &pair) { return pair.device.is_alias_of(t); });
    seen.push_back({t, beside == seen.end() ? on_host(t) : over(beside->host.storage(), t, Device(DeviceType::CPU))});
    return seen.back().host;
  }

  void to_host(c10::IValue &value, bool is_written) {
    // A number may be on the CPU, if it is read.
    const auto host = [&](const at::Tensor &t) { return host_of(t, !is_written && t.defined() && t.dim() == 0); };
    if (value.isTensor()) {
      value = host(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> all;
      for (const at::Tensor &t : value.toTensorVector()) all.push_back(host(t));
      value = all;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> all;
      for (const std::optional<at::Tensor> &t : value.toOptionalTensorVector()) {
        // Of a mask a GPU makes indices, and waits for their number; a write of one value does without.
        if (t && t->defined() && is_mask(*t) && name == "aten::index") waits("aten::index with a mask");
        all.push_back(t ? std::optional<at::Tensor>(host_of(*t, t->dim() == 0 || MIX.count(name))) : std::nullopt);
      }
      value = all;
    } else if (value.isDevice() && value.toDevice().is_cuda() && !device) {
      device = value.toDevice();
    }
  }

  at::Tensor device_of(const at::Tensor &t) {
    if (!t.defined()) return t;
    for (const Pair &pair : seen) {
      if (pair.host.is_same(t)) return pair.device;
    }
    return over_the_same_bytes(t, cuda(device ? device->index() : -1));
  }

  void to_device(c10::IValue &value) {
    if (value.isTensor()) {
      value = device_of(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> all;
      for (const at::Tensor &t : value.toTensorVector()) all.push_back(device_of(t));
      value = all;
    }
  }

  void give_back_what_was_resized() {
    for (const Pair &pair : seen) {
      if (pair.host.storage().data() == pair.device.storage().data() && pair.host.sizes() == pair.device.sizes()) continue;
      pair.device.resize_(pair.host.sizes());
      if (pair.host.numel()) on_host(pair.device).copy_(pair.host);
    }
  }

  const c10::OperatorHandle &op;
  const c10::FunctionSchema &schema;
  Stack *stack;
  const std::string name;
  std::vector<Pair> seen;
  std::optional<Device> device;
};

void run_on_host(const c10::OperatorHandle &op, Stack *stack) { Call(op, stack).run(); }

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }

// ---- operators of their own: memory, views, and copies, which may cross sides

struct Current {  // makes a device the current one for a while
  explicit Current(std::optional<Device> device) : guard(cuda(device ? device->index() : -1)) {}
  c10::DeviceGuard guard;
};

at::ScalarType or_default(std::optional<at::ScalarType> dtype) { return dtype.value_or(at::get_default_dtype_as_scalartype()); }

at::Tensor empty(c10::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const Current here(device);
  return at::detail::empty_generic(sizes, device_memory(), c10::DispatchKeySet(c10::DispatchKey::CUDA), or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  const Current here(device);
  return at::detail::empty_strided_generic(sizes, strides, device_memory(), c10::DispatchKeySet(c10::DispatchKey::CUDA), or_default(dtype));
}

at::Tensor &copy_(at::Tensor &self, const at::Tensor &from, bool non_blocking) {
  const bool crosses = self.is_cuda() != from.is_cuda();
  if (crosses && !non_blocking && self.numel()) waits("aten::copy_");
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  const at::Tensor to = self.is_cuda() ? on_host(self) : self, source = from.is_cuda() ? on_host(from) : from;
  at::AutoDispatchBelowADInplaceOrView below;
  Stack stack = {to, source, non_blocking};
  if (capturing) capturing->all.push_back({op, stack, {to}});
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  return self;
}

at::Tensor copy_from(const at::Tensor &self, const at::Tensor &to, bool non_blocking) {
  at::Tensor written = to;
  return copy_(written, self, non_blocking);
}

const at::Tensor &resize(const at::Tensor &self, c10::IntArrayRef sizes, std::optional<at::MemoryFormat> format) {
  const Current here(self.device());
  return at::native::resize_(self, sizes, format);
}

at::Tensor view(const at::Tensor &self, c10::IntArrayRef sizes) { return at::native::view(self, sizes); }

at::Tensor &set_storage(at::Tensor &self, at::Storage source) { return at::native::set_(self, source); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("copy_", TORCH_FN(copy_));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("set_.source_Storage", TORCH_FN(set_storage));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(at::native::set_storage_cpu_));
  m.impl("set_.source_Tensor", TORCH_FN(at::native::set_tensor_));
  m.impl("resize_", TORCH_FN(resize));
}

void replay(const Graph &graph) {
  at::AutoDispatchBelowADInplaceOrView below;
  for (const Recorded &each : graph.all) {
    if (!each.op) {
      launch_again(each.launch);
      continue;
    }
    Stack stack = each.inputs;
    each.op->redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
    for (size_t i = 0; i < each.outputs.size(); i++) {
      if (!each.outputs[i].isTensor()) continue;
      const at::Tensor &kept = each.outputs[i].toTensor(), &made = stack[i].toTensor();
      if (kept.defined() && !kept.is_same(made)) kept.copy_(made);
    }
  }
}

}  // namespace
}  // namespace host_device

using namespace host_device;

extern "C" {
void host_device_waiting(int mode) { waiting = mode; }
void host_device_flag(int *set_by_kernels, int *seen_by_host) { flags.push_back({set_by_kernels, seen_by_host}); }
// Returns why the host may not wait now, or null after it has. An exception would end the process here.
const char *host_device_synchronize() {
  static std::string why;
  try {
    waits("synchronize");
  } catch (const c10::Error &error) {
    why = error.what_without_backtrace();
    return why.c_str();
  }
  return nullptr;
}
int host_device_capturing() { return capturing != nullptr; }
void host_device_launches(Launch again) { launch_again = again; }
void host_device_launched(int number) {
  if (capturing) capturing->all.push_back({std::nullopt, {}, {}, number});
}
void host_device_begin_capture() {
  capturing = std::make_unique<Graph>();
  blocks().begin_graph();
  const std::lock_guard<std::mutex> hold(blocks().lock);
  for (const auto &[start, block] : blocks().live) {
    const char *bytes = static_cast<const char *>(start);
    before_capture[start].assign(bytes, bytes + block.bytes);
  }
}
int host_device_end_capture() {
  capturing->memory = blocks().end_graph();
  const std::lock_guard<std::mutex> hold(blocks().lock);
  for (const auto &[start, bytes] : before_capture) {
    const auto found = blocks().live.find(start);
    if (found != blocks().live.end() && found->second.bytes == bytes.size()) std::memcpy(start, bytes.data(), bytes.size());
  }
  before_capture.clear();
  graphs.push_back(std::move(capturing));
  return static_cast<int>(graphs.size()) - 1;
}
void host_device_replay(int number) { replay(*graphs.at(number)); }
void host_device_forget(int number) {
  const auto graph = std::exchange(graphs.at(number), nullptr);
  if (!graph) return;
  graph->all.clear();
  blocks().forget_graph(graph->memory);
}
}
