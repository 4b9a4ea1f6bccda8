// Calls functions of the package's libraries with arguments from standard input, and writes what they leave in memory to
// standard output: for libraries that Python can't load, because they are for another processor or have sanitizers.
//
//     driver LIBRARY
//
// A call is the function's name in a line, and its arguments in bytes: numbers as they are in memory, but long with 64
// bits; memory as its size, -1 for null, and its bytes; an array of pointers as their number and their memory.
// The answer is the bytes of all memory that was given, in its order.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

struct Memory {
    std::unique_ptr<char[]> bytes;
    int64_t size;
};
std::vector<Memory> memories;
std::vector<std::vector<void*>> arrays;

void read_bytes(void* to, size_t size) {
    if (!std::cin.read((char*)to, size)) std::exit(3);
}

template <class T>
T read_number() {
    T value;
    read_bytes(&value, sizeof value);
    return value;
}

// The memory is as large as it must be, so that sanitizers see what is read or written behind its end.
void* read_memory() {
    int64_t size = read_number<int64_t>();
    if (size < 0) return nullptr;
    memories.push_back({std::unique_ptr<char[]>(new char[size]), size});
    read_bytes(memories.back().bytes.get(), size);
    return memories.back().bytes.get();
}

template <class T>
T read_argument() {
    if constexpr (std::is_pointer_v<T> && std::is_pointer_v<std::remove_pointer_t<T>>) {
        std::vector<void*> pointers(read_number<int64_t>());
        for (void*& pointer : pointers) pointer = read_memory();
        arrays.push_back(std::move(pointers));
        return (T)arrays.back().data();
    } else if constexpr (std::is_pointer_v<T>) {
        return (T)read_memory();
    } else if constexpr (std::is_same_v<T, long>) {
        return read_number<int64_t>();
    } else {
        return read_number<T>();
    }
}

template <class Result, class... Arguments>
void call(void* function, Result (*)(Arguments...)) {
    std::tuple<Arguments...> arguments{read_argument<Arguments>()...};  // braces: from left to right
    std::apply((Result(*)(Arguments...))function, arguments);
}

using p = void*;
using Norm = void(p, p, p, long, long, p, p, p, p, p, p, float, float, int, int);
using NormBack = void(p, p, p, p, p, long, long, p, p, p, p, p, int, int);
using Unit = void(p, p, p, p, p, long, long, long, long, long, p, p, p, p, p, p, p, float, float, int, int);
using UnitBack = void(p, p, p, p, p, p, p, p, p, long, long, long, long, long, p, p, p, p, p, int, int);
using Strided = void(p, p, p, p, p, long, long, long, long, long, int);
using Orthogonal = void(p*, p, p, long, float, float, float, int, int);
using Resample = int(p, long, int, int, int, int, p, int, int, p, int, p);

void call(const std::string& name, void* function) {
    auto is = [&](const char* start) { return name.rfind(start, 0) == 0; };
    if (is("norm_forward")) return call(function, (Norm*)nullptr);
    if (is("norm_backward")) return call(function, (NormBack*)nullptr);
    if (is("unit_forward")) return call(function, (Unit*)nullptr);
    if (is("unit_backward")) return call(function, (UnitBack*)nullptr);
    if (is("strided_gradients")) return call(function, (Strided*)nullptr);
    if (is("orthogonal")) return call(function, (Orthogonal*)nullptr);
    if (is("resample")) return call(function, (Resample*)nullptr);
    std::exit(4);
}

}  // namespace

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 1;
    for (std::string name; std::getline(std::cin, name);) {
        void* function = dlsym(library, name.c_str());
        if (!function) return std::fprintf(stderr, "%s\n", dlerror()), 2;
        call(name, function);
        for (const Memory& memory : memories) std::cout.write(memory.bytes.get(), memory.size);
        std::cout.flush();
        memories.clear();
        arrays.clear();
    }
}
