#include "emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {

Machine machine;
dim3 grid, block;
uint3 block_index;
unsigned thread_index = 0;
std::uint64_t map_loads[17] = {};

namespace {

constexpr std::size_t stack_size = 256 << 10;

enum class State { ready, at_barrier, at_exchange, finished };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[stack_size]};
    State state = State::ready;
    int line = 0;             // of the source, where it waits
    unsigned mask = 0;        // of the lanes it waits for
    std::uint64_t value = 0;  // that it gives to them
};

struct Warp {
    std::uint64_t lanes[32];  // what was last exchanged
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::unique_ptr<char[]> shared;
const std::function<void()>* body = nullptr;
ucontext_t scheduler;
Fiber* current = nullptr;
std::minstd_rand random_numbers;
std::string problem;

// AddressSanitizer has to know on which stack the program runs. It is told before and after every change.
#ifdef __SANITIZE_ADDRESS__
void* scheduler_fake = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;
#endif

// Returns to the scheduler until it chooses this fiber again.
void leave(State state) {
    current->state = state;
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(state == State::finished ? nullptr : &fake, scheduler_stack,
                                   scheduler_size);
    swapcontext(&current->context, &scheduler);
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_size);
#else
    swapcontext(&current->context, &scheduler);
#endif
}

void start() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
    try {
        (*body)();
    } catch (const std::exception& error) {
        if (problem.empty()) problem = error.what();
    }
    leave(State::finished);
}

void resume(unsigned thread) {
    thread_index = thread;
    current = &fibers[thread];
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&scheduler_fake, current->stack.get(), stack_size);
    swapcontext(&scheduler, &current->context);
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#else
    swapcontext(&scheduler, &current->context);
#endif
}

std::string name(unsigned thread) {
    return "thread " + std::to_string(thread) + " of block (" + std::to_string(block_index.x) + ", " +
           std::to_string(block_index.y) + ")";
}

void complain(unsigned thread, const std::string& what) {
    if (problem.empty())
        problem = name(thread) + ", line " + std::to_string(fibers[thread].line) + ": " + what;
}

// Lets the block continue if all its threads that have not finished wait at the barrier.
bool open_barrier() {
    int line = 0;
    for (unsigned i = 0; i < block.x; ++i) {
        const Fiber& fiber = fibers[i];
        if (fiber.state == State::finished) continue;
        if (fiber.state != State::at_barrier) return false;
        if (line != 0 && line != fiber.line) complain(i, "waits at another barrier than its block");
        line = fiber.line;
    }
    for (unsigned i = 0; i < block.x; ++i) {
        if (fibers[i].state == State::at_barrier) fibers[i].state = State::ready;
    }
    return line != 0;
}

// Lets the lanes that wait for each other continue if all of them wait.
bool open_exchange(unsigned thread) {
    const Fiber& first = fibers[thread];
    const unsigned base = thread & ~31u;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(first.mask >> lane & 1)) continue;
        if (base + lane >= block.x || fibers[base + lane].state == State::finished) {
            complain(thread, "waits for lane " + std::to_string(lane) + ", which has ended");
            return false;
        }
        const Fiber& other = fibers[base + lane];
        if (other.state != State::at_exchange) return false;
        if (other.mask != first.mask || other.line != first.line) {
            complain(thread, "waits for lane " + std::to_string(lane) + ", which is at another exchange");
            return false;
        }
    }
    const unsigned mask = first.mask;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        warps[base / 32].lanes[lane] = fibers[base + lane].value;
        fibers[base + lane].state = State::ready;
    }
    return true;
}

void prepare(unsigned thread) {
    Fiber& fiber = fibers[thread];
    fiber.state = State::ready;
#ifdef __SANITIZE_ADDRESS__
    // The stack's last thread may have ended in the middle of a function.
    __asan_unpoison_memory_region(fiber.stack.get(), stack_size);
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_size;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
}

// The numbers below `count` in the order of the schedule.
std::vector<unsigned> in_order(unsigned count) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (machine.schedule == reverse) std::reverse(order.begin(), order.end());
    if (machine.schedule >= 0) std::shuffle(order.begin(), order.end(), random_numbers);
    return order;
}

// Lets each of the warp's threads run to where it waits next; returns whether any ran.
bool advance(unsigned warp) {
    bool moved = false;
    for (const unsigned lane : in_order(std::min(32u, block.x - 32 * warp))) {
        const unsigned thread = 32 * warp + lane;
        if (fibers[thread].state == State::at_exchange) moved |= open_exchange(thread);
        if (fibers[thread].state != State::ready) continue;
        resume(thread);
        moved = true;
        if (!problem.empty()) return false;
    }
    return moved;
}

void run_block(std::size_t bytes) {
    shared.reset(new char[bytes]);
    std::fill_n(shared.get(), bytes, '\xff');
    for (unsigned i = 0; i < block.x; ++i) prepare(i);
    const auto finished = [] {
        return std::all_of(fibers.begin(), fibers.begin() + block.x,
                           [](const Fiber& fiber) { return fiber.state == State::finished; });
    };
    while (!finished()) {
        bool moved = false;
        for (const unsigned warp : in_order((block.x + 31) / 32)) {
            // As far ahead of the others as it can; if shuffled, most of the time.
            while (advance(warp)) {
                moved = true;
                if (machine.schedule >= 0 && random_numbers() % 8 == 0) break;
            }
            if (!problem.empty()) return;
        }
        moved |= open_barrier();
        for (unsigned i = 0; i < block.x; ++i) {
            if (!moved && fibers[i].state != State::finished)
                complain(i, "waits for threads that never arrive");
        }
        if (!problem.empty()) return;
    }
}

}  // namespace

void fail(const char* what, int line) {
    throw std::runtime_error(name(thread_index) + ", line " + std::to_string(line) + ": " + what);
}

void* shared_memory() { return shared.get(); }

void wait_for_block(int line) {
    current->line = line;
    leave(State::at_barrier);
}

const std::uint64_t* exchange(unsigned mask, std::uint64_t value, int line) {
    if (!(mask >> (thread_index & 31) & 1)) fail("a lane outside of its mask", line);
    current->line = line;
    current->mask = mask;
    current->value = value;
    leave(State::at_exchange);
    return warps[thread_index / 32].lanes;
}

void wait_for_warp(unsigned mask, int line) { exchange(mask, 0, line); }

void run(dim3 blocks, unsigned threads, std::size_t bytes, const std::function<void()>& thread) {
    if (threads < 1 || threads > 1024)
        throw std::runtime_error("a block of " + std::to_string(threads) + " threads");
    if (bytes > machine.shared_per_block) throw std::runtime_error("too much shared memory asked for");
    if (blocks.x < 1 || blocks.y < 1 || blocks.y > 65535)
        throw std::runtime_error("a grid that no GPU takes");
    grid = blocks;
    block = dim3(threads);
    body = &thread;
    problem.clear();
    if (fibers.size() < threads) fibers.resize(threads);
    warps.resize((threads + 31) / 32);
    random_numbers.seed(static_cast<unsigned>(machine.schedule) + 1);
    for (unsigned y = 0; y < blocks.y && problem.empty(); ++y) {
        for (unsigned x = 0; x < blocks.x && problem.empty(); ++x) {
            block_index = uint3{x, y, 0};
            run_block(bytes);
        }
    }
    shared.reset();
    if (!problem.empty()) throw std::runtime_error(problem);
}

}  // namespace emulator

// For tests in Python, through ctypes.

// How many loads of `bytes` bytes there were since the last call.
extern "C" __attribute__((visibility("default"))) std::uint64_t emulator_map_loads(int bytes) {
    return std::exchange(emulator::map_loads[bytes], 0);
}

extern "C" __attribute__((visibility("default"))) void emulator_set(int schedule, int multiprocessors,
                                                                    std::size_t shared_per_block,
                                                                    std::size_t shared_per_multiprocessor,
                                                                    int matrix_unit) {
    emulator::machine = {schedule, multiprocessors, shared_per_block, shared_per_multiprocessor, matrix_unit};
}
