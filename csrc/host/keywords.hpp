// Functions and structs that Python calls with keywords. pybind11 takes 50 ns or more for each of them: 2.4 us for a
// small call of the Gaussian kernel, whose own work is less. Here a keyword is known by the address of its name.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common.hpp"

namespace lk {

// --- from Python objects ----------------------------------------------------------------------------------------

// Reads an argument of type T: `from` returns whether it could, `type` names what was expected.
template <class T, class = void>
struct Cast;

template <class T>
struct Cast<T, std::enable_if_t<std::is_integral_v<T>>> {
  static constexpr const char* type = "int";
  static bool from(PyObject* x, T& to) {
    if (!PyLong_Check(x)) return false;
    if constexpr (std::is_signed_v<T>) {
      const long long value = PyLong_AsLongLong(x);
      to = static_cast<T>(value);
      return static_cast<long long>(to) == value && (value != -1 || !PyErr_Occurred());
    } else {
      const unsigned long long value = PyLong_AsUnsignedLongLong(x);
      to = static_cast<T>(value);
      return value != ~0ull || !PyErr_Occurred();
    }
  }
};

template <>
struct Cast<bool> {
  static constexpr const char* type = "bool";
  static bool from(PyObject* x, bool& to) {
    to = x == Py_True;
    return to || x == Py_False;
  }
};

template <>
struct Cast<double> {
  static constexpr const char* type = "float";
  static bool from(PyObject* x, double& to) {
    if (!PyFloat_Check(x) && !PyLong_Check(x)) return false;
    to = PyFloat_AsDouble(x);
    return to != -1 || !PyErr_Occurred();
  }
};

// An address; None or 0 stands for a null pointer.
template <class T>
struct Cast<T*, std::enable_if_t<std::is_void_v<T> || std::is_arithmetic_v<T>>> {
  static constexpr const char* type = "an address (int) or None";
  static bool from(PyObject* x, T*& to) {
    std::uintptr_t address = 0;
    if (x != Py_None && !Cast<std::uintptr_t>::from(x, address)) return false;
    to = reinterpret_cast<T*>(address);
    return true;
  }
};

// A member of an enum.Enum, by identity; the values of E count from 0.
template <class E>
struct Cast<E, std::enable_if_t<std::is_enum_v<E>>> {
  static inline const char* type = nullptr;
  static inline std::vector<PyObject*> members;
  static bool from(PyObject* x, E& to) {
    size_t i = 0;
    while (i < members.size() && members[i] != x) ++i;
    to = static_cast<E>(i);
    return i < members.size();
  }
};

template <class... T>
inline bool from_tuple(PyObject* x, T&... to) {
  if (!PyTuple_Check(x) || PyTuple_GET_SIZE(x) != sizeof...(T)) return false;
  Py_ssize_t i = 0;
  return (Cast<T>::from(PyTuple_GET_ITEM(x, i++), to) && ...);
}

template <>
struct Cast<Input> {
  static constexpr const char* type = "(address, group stride, sample stride, row stride) or None";
  static bool from(PyObject* x, Input& to) {
    to = {};
    return x == Py_None || from_tuple(x, to.data, to.group, to.sample, to.row);
  }
};

template <>
struct Cast<Seeds> {
  static constexpr const char* type = "int or (address, stride)";
  static bool from(PyObject* x, Seeds& to) {
    to = {};
    return Cast<int64_t>::from(x, to.value) || (!PyErr_Occurred() && from_tuple(x, to.of_groups, to.stride));
  }
};

// At most N values; those not given are zero.
template <class T, size_t N>
struct Cast<T[N]> {
  static inline const std::string text = "tuple of at most " + std::to_string(N) + ", each " + Cast<T>::type;
  static inline const char* type = text.c_str();
  static bool from(PyObject* x, T (&to)[N]) {
    if (!PyTuple_Check(x) || PyTuple_GET_SIZE(x) > static_cast<Py_ssize_t>(N)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(x); ++i)
      if (!Cast<T>::from(PyTuple_GET_ITEM(x, i), to[i])) return false;
    return true;
  }
};

template <class T>
struct Cast<std::vector<T>> {
  static inline const std::string text = std::string("tuple, each ") + Cast<T>::type;
  static inline const char* type = text.c_str();
  static bool from(PyObject* x, std::vector<T>& to) {
    if (!PyTuple_Check(x)) return false;
    to.resize(static_cast<size_t>(PyTuple_GET_SIZE(x)));
    for (size_t i = 0; i < to.size(); ++i)
      if (!Cast<T>::from(PyTuple_GET_ITEM(x, static_cast<Py_ssize_t>(i)), to[i])) return false;
    return true;
  }
};

// --- a call -----------------------------------------------------------------------------------------------------

constexpr int kMostArguments = 32;

// The signature of a function or struct: `positional` arguments, then `keywords`, all of which are required.
struct Signature {
  std::string function;
  Py_ssize_t positional = 0, keywords = 0;
  PyObject* names[kMostArguments] = {};  // of keywords; interned

  void set(std::string name, Py_ssize_t count, const std::vector<const char*>& keyword_names);

  // Puts the values in the order of the signature. Returns false and sets TypeError where they do not fit it.
  bool arrange(PyObject* const* given, Py_ssize_t count, PyObject* given_names, PyObject** values) const;
  void refuse(Py_ssize_t argument, const char* type, PyObject* given) const;
};

// Runs f, and turns C++ exceptions into Python exceptions.
template <class F>
inline PyObject* guarded(F f) {
  try {
    return f();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// --- structs ----------------------------------------------------------------------------------------------------

template <class C, class T>
struct Field {
  const char* name;
  T C::* member;
};
template <class C, class T>
Field(const char*, T C::*) -> Field<C, T>;

// The keywords that make a P: a tuple of Field, for each type that Python makes.
template <class P>
struct FieldsOf;

// A Python class whose instances are made from keywords and hold a P that is opaque to Python.
template <class P>
struct Struct {
  struct Object {
    PyObject_HEAD P value;
  };
  static inline PyTypeObject* type = nullptr;
  static inline Signature signature;

  static PyObject* make(PyObject*, PyObject* const* given, size_t count, PyObject* given_names) {
    PyObject* values[kMostArguments];
    if (!signature.arrange(given, PyVectorcall_NARGS(count), given_names, values)) return nullptr;
    Object* object = PyObject_New(Object, type);
    if (object == nullptr) return nullptr;
    new (&object->value) P{};
    Py_ssize_t i = 0;
    const auto load = [&](const auto& field) {
      using T = std::remove_reference_t<decltype(object->value.*(field.member))>;
      if (Cast<T>::from(values[i], object->value.*(field.member))) return ++i, true;
      signature.refuse(i, Cast<T>::type, values[i]);
      return false;
    };
    PyObject* const made = guarded([&]() -> PyObject* {
      const bool fits = std::apply([&](const auto&... field) { return (load(field) && ...); }, FieldsOf<P>::list);
      return fits ? reinterpret_cast<PyObject*>(object) : nullptr;
    });
    if (made == nullptr) Py_DECREF(object);
    return made;
  }

  static void destroy(PyObject* self) {
    reinterpret_cast<Object*>(self)->value.~P();
    PyObject_Free(self);
    Py_DECREF(type);
  }
};

template <class P>
inline void define_struct(pybind11::module_& m, const char* name) {
  using S = Struct<P>;
  static_assert(std::tuple_size_v<decltype(FieldsOf<P>::list)> <= kMostArguments);
  std::apply([&](const auto&... field) { S::signature.set(name, 0, {field.name...}); }, FieldsOf<P>::list);
  static const std::string full = std::string(PyModule_GetName(m.ptr())) + "." + name;
  PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(&S::destroy)}, {0, nullptr}};
  PyType_Spec spec{full.c_str(), sizeof(typename S::Object), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                   slots};
  S::type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  if (S::type == nullptr) throw pybind11::error_already_set();
  S::type->tp_vectorcall = &S::make;
  m.add_object(name, reinterpret_cast<PyObject*>(S::type));
}

template <class E>
inline void define_enum(pybind11::module_& m, const char* name, std::initializer_list<const char*> members) {
  pybind11::list values;
  for (const char* member : members) values.append(pybind11::make_tuple(member, values.size()));
  using namespace pybind11::literals;
  const pybind11::object type =
      pybind11::module_::import("enum").attr("Enum")(name, values, "module"_a = m.attr("__name__"));
  for (const char* member : members) Cast<E>::members.push_back(pybind11::object(type.attr(member)).release().ptr());
  Cast<E>::type = name;
  m.add_object(name, type);
}

// --- functions --------------------------------------------------------------------------------------------------

// An argument of a C++ function: a value, or the object that a Python object holds.
template <class T, class = void>
struct Argument {
  T value{};
  const char* type = Cast<T>::type;
  bool load(PyObject* x) { return Cast<T>::from(x, value); }
  T& get() { return value; }
};
template <class T, size_t N>
struct Argument<T (&)[N]> {
  std::remove_const_t<T> value[N] = {};
  const char* type = Cast<std::remove_const_t<T>[N]>::type;
  bool load(PyObject* x) { return Cast<std::remove_const_t<T>[N]>::from(x, value); }
  T (&get()) [N] { return value; }
};
template <class P>
struct Argument<const P&, std::enable_if_t<std::is_class_v<P>>> {
  const P* value = nullptr;
  const char* type = Struct<P>::signature.function.c_str();
  bool load(PyObject* x) {
    if (Py_TYPE(x) != Struct<P>::type) return false;
    value = &reinterpret_cast<typename Struct<P>::Object*>(x)->value;
    return true;
  }
  const P& get() { return *value; }
};
// The object that a pybind11 object holds; None is null.
template <class T>
struct Argument<T*, std::enable_if_t<std::is_class_v<T>>> {
  pybind11::detail::make_caster<T> value;
  const char* type = "an object of the extension, or None";
  bool load(PyObject* x) { return value.load(x, true); }
  T* get() { return pybind11::detail::cast_op<T*>(value); }
};

// True for an argument that is an object of the extension.
template <class T>
constexpr bool is_object = std::is_class_v<std::remove_pointer_t<std::remove_reference_t<T>>>;

// The Python side of a C++ function: the objects of the extension that it begins with are positional, the rest
// keywords.
template <auto function>
struct Function;
template <class R, class... A, R (*function)(A...)>
struct Function<function> {
  static constexpr Py_ssize_t arguments = sizeof...(A);
  static_assert(arguments <= kMostArguments);
  static constexpr Py_ssize_t positional = [] {
    Py_ssize_t objects = 0;
    (void)((is_object<A> && ++objects) && ...);
    return objects;
  }();
  static inline Signature signature;
  static inline PyMethodDef definition{};

  static PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t count, PyObject* given_names) {
    PyObject* values[arguments];
    if (!signature.arrange(given, count, given_names, values)) return nullptr;
    return run(values, std::index_sequence_for<A...>{});
  }

  template <size_t... i>
  static PyObject* run(PyObject* const* values, std::index_sequence<i...>) {
    std::tuple<Argument<A>...> all;
    const auto load = [&](auto& argument, size_t at) {
      if (argument.load(values[at])) return true;
      signature.refuse(static_cast<Py_ssize_t>(at), argument.type, values[at]);
      return false;
    };
    if (!(load(std::get<i>(all), i) && ...)) return nullptr;
    return guarded([&]() -> PyObject* {
      if constexpr (std::is_void_v<R>) {
        function(std::get<i>(all).get()...);
        Py_RETURN_NONE;
      } else {
        return pybind11::cast(function(std::get<i>(all).get()...)).release().ptr();
      }
    });
  }
};

template <auto function, Py_ssize_t count>
inline void define(pybind11::module_& m, const char* name, const char* const (&keywords)[count]) {
  using F = Function<function>;
  static_assert(count == F::arguments - F::positional, "a keyword for each argument after the objects");
  F::signature.set(name, F::positional, {keywords, keywords + count});
  F::definition = {F::signature.function.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&F::call)),
                   METH_FASTCALL | METH_KEYWORDS, nullptr};
  const pybind11::object module_name = m.attr("__name__");
  m.add_object(name, pybind11::reinterpret_steal<pybind11::object>(
                         PyCFunction_NewEx(&F::definition, nullptr, module_name.ptr())));
}

}  // namespace lk
