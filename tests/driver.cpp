// Calls functions of the package's libraries with arguments from standard input, and writes what they leave in memory to
// standard output: for libraries that Python can't load, because they are for another processor or have sanitizers.
//
//     driver LIBRARY
//
// A call is the function's name and the number of its arguments, each in a line, and the arguments: a letter, and
//     i   an integer of 64 bits,
//     f   a float32,
//     m   memory: its size, 64 bits, which is -1 for null, and its bytes,
//     p   an array of pointers: their number, 64 bits, and for each its memory.
// The answer is the bytes of all memory that was given, in its order.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr size_t INTEGERS = 24, FLOATS = 4;  // most arguments of a function

struct Memory {
    std::unique_ptr<char[]> bytes;
    int64_t size;
};

template <class T>
T read_number() {
    T value;
    if (!std::cin.read((char*)&value, sizeof value)) std::exit(3);
    return value;
}

// The memory is as large as it must be, so that sanitizers see what is read or written behind its end.
void* read_memory(std::vector<Memory>& memories) {
    int64_t size = read_number<int64_t>();
    if (size < 0) return nullptr;
    memories.push_back({std::unique_ptr<char[]>(new char[size]), size});
    if (!std::cin.read(memories.back().bytes.get(), size)) std::exit(3);
    return memories.back().bytes.get();
}

// Calls a function of any arguments. Integers and pointers go into one kind of register, or to the stack if there are
// too many, and floats into another kind, both on x86-64 (System V) and on ARM (AAPCS64). So their order among each other
// does not matter, and those that a function does not have do no harm.
template <size_t... I>
void call(void* function, const int64_t* integers, const float* floats, std::index_sequence<I...>) {
    ((void (*)(decltype((void)I, int64_t())..., float, float, float, float))function)(integers[I]..., floats[0], floats[1],
                                                                                     floats[2], floats[3]);
}

}  // namespace

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 1;
    std::string name, count;
    while (std::getline(std::cin, name) && std::getline(std::cin, count)) {
        void* function = dlsym(library, name.c_str());
        if (!function) return std::fprintf(stderr, "%s\n", dlerror()), 2;
        std::vector<Memory> memories;
        std::vector<std::vector<void*>> arrays;
        std::vector<int64_t> integers;
        std::vector<float> floats;
        for (int i = std::stoi(count); i > 0; i--) {
            char kind = read_number<char>();
            if (kind == 'i') integers.push_back(read_number<int64_t>());
            if (kind == 'f') floats.push_back(read_number<float>());
            if (kind == 'm') integers.push_back((int64_t)read_memory(memories));
            if (kind == 'p') {
                std::vector<void*> pointers(read_number<int64_t>());
                for (void*& pointer : pointers) pointer = read_memory(memories);
                arrays.push_back(std::move(pointers));
                integers.push_back((int64_t)arrays.back().data());
            }
        }
        if (integers.size() > INTEGERS || floats.size() > FLOATS) return std::fprintf(stderr, "too many arguments\n"), 4;
        integers.resize(INTEGERS);
        floats.resize(FLOATS);
        call(function, integers.data(), floats.data(), std::make_index_sequence<INTEGERS>());
        for (const Memory& memory : memories) std::cout.write(memory.bytes.get(), memory.size);
        std::cout.flush();
    }
}
