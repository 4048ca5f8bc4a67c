// Two CUDA devices in the host's memory, for a torch that was built without CUDA: what is current, memory, streams that
// have nothing to wait for, random numbers. A library that is loaded before torch asks who serves CUDA.
#include "host_device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>

namespace host_device {

thread_local DeviceIndex current = 0;

Device cuda(DeviceIndex index) {
  TORCH_CHECK(index < DEVICES, "CUDA error: invalid device ordinal");
  return Device(DeviceType::CUDA, index < 0 ? current : index);
}

// ---- memory

Blocks &blocks() {
  static Blocks all;
  return all;
}

void Blocks::add(void *start, size_t bytes, int device) {
  if (start == nullptr) return;
  const std::lock_guard<std::mutex> hold(lock);
  live[start] = {bytes, device};
  if (device >= 0) {
    allocated[device] += bytes;
    peak[device] = std::max(peak[device], allocated[device]);
  }
}

void Blocks::remove(void *start) {
  if (start == nullptr) return;
  const std::lock_guard<std::mutex> hold(lock);
  const auto found = live.find(start);
  if (found == live.end()) return;
  if (found->second.device >= 0) allocated[found->second.device] -= found->second.bytes;
  live.erase(found);
}

bool Blocks::is_pinned(const void *p) {
  const std::lock_guard<std::mutex> hold(lock);
  auto next = live.upper_bound(const_cast<void *>(p));
  if (next == live.begin()) return false;
  --next;
  return next->second.device < 0 && (const char *)p < (const char *)next->first + next->second.bytes;
}

void *Blocks::allocate(size_t bytes, int device) {
  // A GPU's allocator hands out nothing for nothing.
  void *p = bytes ? std::aligned_alloc(512, (bytes + 511) / 512 * 512) : nullptr;
  add(p, bytes, device);
  const std::lock_guard<std::mutex> hold(lock);
  if (in_graph && p) of_this_graph.insert(p);
  return p;
}

void Blocks::give_back(void *start) {
  remove(start);
  const std::lock_guard<std::mutex> hold(lock);
  if (!of_this_graph.count(start) && !of_graphs.count(start)) std::free(start);
}

void Blocks::begin_graph() {
  const std::lock_guard<std::mutex> hold(lock);
  in_graph = true;
}

std::set<void *> Blocks::end_graph() {
  const std::lock_guard<std::mutex> hold(lock);
  in_graph = false;
  of_graphs.insert(of_this_graph.begin(), of_this_graph.end());
  return std::exchange(of_this_graph, {});
}

void Blocks::forget_graph(const std::set<void *> &memory) {
  const std::lock_guard<std::mutex> hold(lock);
  for (void *start : memory) {
    of_graphs.erase(start);
    if (!live.count(start)) std::free(start);
  }
}

namespace {

void give_back(void *p) { blocks().give_back(p); }

struct Memory final : c10::Allocator {
  explicit Memory(bool pinned) : pinned(pinned) {}
  c10::DataPtr allocate(size_t n) override {
    const Device device = pinned ? Device(DeviceType::CPU) : cuda(-1);
    void *p = blocks().allocate(n, pinned ? -1 : device.index());
    return {p, p, &give_back, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void *to, const void *from, size_t n) const override { default_copy_data(to, from, n); }
  const bool pinned;
};

Memory memory_of_devices(false), memory_pinned(true);

}  // namespace

c10::Allocator *device_memory() { return &memory_of_devices; }

// ---- random numbers: a generator of the CPU that says it is a device's

namespace {

struct Generator final : c10::GeneratorImpl {
  explicit Generator(DeviceIndex index)
      : c10::GeneratorImpl(cuda(index), c10::DispatchKeySet(c10::DispatchKey::CUDA)),
        host(at::make_generator<at::CPUGeneratorImpl>(c10::default_rng_seed_val)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl &state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  Generator *clone_impl() const override {
    auto *made = new Generator(device().index());
    made->host = host.clone();
    return made;
  }
  at::Generator host;
};

// The first generator that is made for a device is its default one: so Python can hold it.
std::array<at::Generator, DEVICES> defaults;

at::Generator new_generator(DeviceIndex index) {
  const DeviceIndex i = cuda(index).index();
  at::Generator made = at::make_generator<Generator>(i);
  if (!defaults[i].defined()) defaults[i] = made;
  return made;
}

}  // namespace

at::Generator generator_on_host(const std::optional<at::Generator> &asked, DeviceIndex index) {
  const DeviceIndex i = cuda(index).index();
  if (!asked && !defaults[i].defined()) new_generator(i);
  const at::Generator &chosen = asked ? *asked : defaults[i];
  TORCH_CHECK(chosen.device().is_cuda(), "Expected a 'cuda' device type for generator but found '", chosen.device().type(), "'");
  return static_cast<Generator *>(chosen.unsafeGetGeneratorImpl())->host;
}

// ---- what torch asks of a device

namespace {

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device d) const override {
    const Device before = cuda(-1);
    setDevice(d);
    return before;
  }
  Device getDevice() const override { return cuda(-1); }
  void setDevice(Device d) const override { current = cuda(d.index()).index(); }
  void uncheckedSetDevice(Device d) const noexcept override { current = d.index(); }
  c10::Stream getStream(Device d) const override { return c10::Stream(c10::Stream::DEFAULT, cuda(d.index())); }
  c10::Stream getDefaultStream(Device d) const override { return getStream(d); }
  c10::Stream getStreamFromGlobalPool(Device d, bool) const override { return getStream(d); }
  c10::Stream getNewStream(Device d, int) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream s) const override { return getStream(s.device()); }
  DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  void record(void **, const c10::Stream &, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void *, const c10::Stream &) const override {}
  bool queryEvent(void *) const override { return true; }
  bool queryStream(const c10::Stream &) const override { return true; }
  void synchronizeStream(const c10::Stream &) const override {}
  void synchronizeEvent(void *) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  const at::Generator &getDefaultGenerator(DeviceIndex i) const override {
    const DeviceIndex chosen = cuda(i).index();
    if (!defaults[chosen].defined()) new_generator(chosen);
    return defaults[chosen];
  }
  at::Generator getNewGenerator(DeviceIndex i) const override { return new_generator(i); }
  bool isPinnedPtr(const void *p) const override { return blocks().is_pinned(p); }
  at::Allocator *getPinnedMemoryAllocator() const override { return &memory_pinned; }
  at::Allocator *getCUDADeviceAllocator() const override { return &memory_of_devices; }
  DeviceIndex deviceCount() const override { return DEVICES; }
  int getNumGPUs() const override { return DEVICES; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex i) const override { current = cuda(i).index(); }
  DeviceIndex exchangeDevice(DeviceIndex i) const override { return std::exchange(current, cuda(i).index()); }
  DeviceIndex maybeExchangeDevice(DeviceIndex i) const override { return i < 0 ? current : exchangeDevice(i); }
  Device getDeviceFromPtr(void *) const override { return cuda(-1); }
  void deviceSynchronize(DeviceIndex) const override {}
};

struct Setup {
  Setup() { c10::SetAllocator(DeviceType::CUDA, &memory_of_devices, 100); }
} setup;

}  // namespace
}  // namespace host_device

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, host_device::Hooks)
}

extern "C" {
int host_device_current() { return host_device::current; }
void host_device_set(int index) { host_device::current = static_cast<c10::DeviceIndex>(index); }
// Returns the bytes from an address to the end of the memory in use that it lies in, 0 where there is none.
size_t host_device_bytes_from(const char *p) {
  auto &all = host_device::blocks();
  const std::lock_guard<std::mutex> hold(all.lock);
  auto next = all.live.upper_bound(const_cast<char *>(p));
  if (next == all.live.begin()) return 0;
  --next;
  const char *end = (const char *)next->first + next->second.bytes;
  return p < end ? end - p : 0;
}
size_t host_device_allocated(int index) { return host_device::blocks().allocated[index]; }
size_t host_device_peak(int index) { return host_device::blocks().peak[index]; }
void host_device_reset_peak(int index) { host_device::blocks().peak[index] = host_device::blocks().allocated[index]; }
}
