#include "host/keywords.hpp"

namespace lk {

void Signature::set(std::string name, Py_ssize_t count, const std::vector<const char*>& keyword_names) {
  function = std::move(name);
  positional = count;
  for (const char* keyword : keyword_names) names[keywords++] = PyUnicode_InternFromString(keyword);
}

bool Signature::arrange(PyObject* const* given, Py_ssize_t count, PyObject* given_names, PyObject** values) const {
  const Py_ssize_t named = given_names != nullptr ? PyTuple_GET_SIZE(given_names) : 0;
  if (count != positional) {
    PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments, got %zd", function.c_str(), positional, count);
    return false;
  }
  for (Py_ssize_t i = 0; i < positional; ++i) values[i] = given[i];
  for (Py_ssize_t i = 0; i < keywords; ++i) values[positional + i] = nullptr;
  for (Py_ssize_t i = 0; i < named; ++i) {
    PyObject* const name = PyTuple_GET_ITEM(given_names, i);
    Py_ssize_t at = i < keywords && names[i] == name ? i : 0;
    while (at < keywords && names[at] != name) ++at;
    if (at == keywords)  // a name that is not interned
      for (at = 0; at < keywords && PyUnicode_Compare(names[at], name) != 0;) ++at;
    if (at == keywords) {
      PyErr_Format(PyExc_TypeError, "%s() has no argument '%U'", function.c_str(), name);
      return false;
    }
    values[positional + at] = given[count + i];
  }
  for (Py_ssize_t i = 0; i < keywords; ++i) {
    if (values[positional + i] != nullptr) continue;
    PyErr_Format(PyExc_TypeError, "%s() lacks the argument '%U'", function.c_str(), names[i]);
    return false;
  }
  return true;
}

void Signature::refuse(Py_ssize_t argument, const char* type, PyObject* given) const {
  PyErr_Clear();
  if (argument < positional)
    PyErr_Format(PyExc_TypeError, "%s(): argument %zd must be %s, got %R", function.c_str(), argument + 1, type, given);
  else
    PyErr_Format(PyExc_TypeError, "%s(): '%U' must be %s, got %R", function.c_str(), names[argument - positional], type,
                 given);
}

}  // namespace lk
