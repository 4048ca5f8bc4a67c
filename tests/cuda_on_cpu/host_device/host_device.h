// What the parts of the device share.
#pragma once
#include <ATen/ATen.h>

#include <map>
#include <mutex>
#include <optional>
#include <set>

namespace host_device {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;

constexpr DeviceIndex DEVICES = 2;

// Returns a device, the current one for -1.
Device cuda(DeviceIndex index);

struct Block {
  size_t bytes;
  int device;  // -1: pinned memory of the host
};

// The memory of the devices, and the pinned memory, that is in use. What is allocated while a graph is captured is the
// graph's: it is not freed before the graph is forgotten.
struct Blocks {
  void add(void *start, size_t bytes, int device);
  void remove(void *start);
  bool is_pinned(const void *p);
  void *allocate(size_t bytes, int device);
  void give_back(void *start);
  void begin_graph();
  std::set<void *> end_graph();
  void forget_graph(const std::set<void *> &memory);
  std::mutex lock;
  std::map<void *, Block> live;
  std::set<void *> of_graphs, of_this_graph;
  bool in_graph = false;
  size_t allocated[DEVICES] = {}, peak[DEVICES] = {};
};
Blocks &blocks();

c10::Allocator *device_memory();

// Returns the generator of the CPU behind a device's: the asked one, or the default one of the device.
at::Generator generator_on_host(const std::optional<at::Generator> &asked, DeviceIndex index);

}  // namespace host_device
