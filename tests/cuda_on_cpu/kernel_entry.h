// What emulator.py calls: for every kernel, its parameters described in integers, and an entry that takes pointers to
// the arguments.
#pragma once

enum { EMU_FLOATING = 256, EMU_SIGNED = 512, EMU_POINTER = 1024, EMU_READ_ONLY = 2048 };  // below 256: size in bytes

template <class T> struct emu_size { static constexpr int value = (int)sizeof(T); };
template <> struct emu_size<void> { static constexpr int value = 0; };
template <class T>
struct emu_parameter {
  static_assert(std::is_arithmetic<T>::value || std::is_enum<T>::value, "a kernel takes numbers and pointers");
  static constexpr int value = (int)sizeof(T) | (std::is_floating_point<T>::value ? EMU_FLOATING : 0) |
                               (std::is_signed<T>::value ? EMU_SIGNED : 0);
};
template <class T>
struct emu_parameter<T *> {
  static constexpr int value = EMU_POINTER | emu_size<typename std::remove_cv<T>::type>::value |
                               (std::is_floating_point<T>::value ? EMU_FLOATING : 0) |
                               (std::is_const<T>::value ? EMU_READ_ONLY : 0);
};
template <class... Parameters>
int emu_describe(void (*)(Parameters...), int *out) {
  const int values[] = {emu_parameter<Parameters>::value..., 0};
  for (size_t i = 0; i < sizeof...(Parameters); i++) out[i] = values[i];
  return (int)sizeof...(Parameters);
}
template <class... Parameters, size_t... I>
void emu_call(void (*kernel)(Parameters...), void **arguments, std::index_sequence<I...>) {
  (void)arguments;
  kernel(*static_cast<typename std::remove_cv<Parameters>::type *>(arguments[I])...);
}
template <class... Parameters>
void emu_enter(void (*kernel)(Parameters...), void **arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    void **arguments;
  } call{kernel, arguments};
  emu_run([](void *pointer) {
    Call *call = static_cast<Call *>(pointer);
    emu_call(call->kernel, call->arguments, std::index_sequence_for<Parameters...>{});
  }, &call);
}
