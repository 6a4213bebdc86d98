// host_cost ARTIFACT RUNTIME FFI THREADS: what a host costs, as JSON (examples/host_cost.py runs it).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "shiftadd/shiftadd_text.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// The processor's time of this process so far: what a busy machine cannot stretch.
double processor_milliseconds() { return 1e3 * static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// A line of /proc/self/smaps_rollup or status, in kilobytes.
double kilobytes(const char* file, const std::string& key) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    if (line.compare(0, key.size(), key) == 0) return std::atof(line.c_str() + key.size());
  }
  return 0;
}

// Resident kilobytes of the mapped parameters.
double parameters() {
  std::ifstream stream("/proc/self/smaps");
  bool inside = false;
  double total = 0;
  for (std::string line; std::getline(stream, line);) {
    if (line.find("kB") == line.npos && line.find('-') != line.npos && line.find("VmFlags") == line.npos) {
      inside = line.find("parameters.safetensors") != line.npos;
    }
    if (inside && line.compare(0, 4, "Rss:") == 0) total += std::atof(line.c_str() + 4);
  }
  return total;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Inputs of decode_b1 at the position of the session's end, with a cache of zeros.
struct Step {
  std::vector<std::vector<int64_t>> shapes;
  std::vector<void*> memory;
  std::vector<shiftadd_tensor> inputs;

  Step(const shiftadd::Model& model, int32_t length) {
    const shiftadd_model_info info = model.info();
    const int64_t width = (info.context + info.page - 1) / info.page;
    const shiftadd_tensor* specs = nullptr;
    size_t count = 0;
    shiftadd::check(shiftadd_function_signature(model.get(), "decode_b1", &specs, &count, nullptr, nullptr));
    shapes.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      shapes.emplace_back(specs[i].shape, specs[i].shape + specs[i].ndim);
      size_t bytes = 4;
      for (int64_t& size : shapes.back()) bytes *= static_cast<size_t>(size = size < 0 ? width : size);
      memory.push_back(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
      std::fill_n(static_cast<char*>(memory.back()), bytes, 0);
      inputs.push_back({specs[i].name, specs[i].dtype, specs[i].ndim, shapes.back().data(), memory.back()});
      const std::string name = specs[i].name;
      if (name == "length") *static_cast<int32_t*>(memory.back()) = length;
      if (name == "block_table") {
        for (int32_t page = 0; page < width; ++page) static_cast<int32_t*>(memory.back())[page] = page;
      }
    }
  }
  ~Step() {
    for (void* one : memory) std::free(one);
  }
};

// Adds up the milliseconds of operators; what the runtime calls of its own is none.
void add_operator(const char* op, double seconds, void* sum) {
  if (std::strncmp(op, "vm.builtin.", 11) != 0) *static_cast<double*>(sum) += 1e3 * seconds;
}

}  // namespace

int main(int count, char** arguments) {
  const auto begin = Clock::now();
  if (count != 5) return 2;
  shiftadd::check(shiftadd_load_runtime(arguments[2], arguments[3]));
  shiftadd::ModelOptions options;
  options.threads = std::atoi(arguments[4]);
  const shiftadd::Model model(arguments[1], options);
  shiftadd::Session session(model);
  const double loaded = milliseconds(begin);
  const std::string folder = arguments[1];
  std::optional<shiftadd::Tokenizer> tokenizer;  // made-up models have none
  if (std::ifstream(folder + "/tokenizer.json")) tokenizer.emplace(folder);
  const double start = milliseconds(begin), processor = processor_milliseconds();
  session.prefill({5, 6, 7, 8, 9, 10, 11, 12});
  session.decode(5);
  const double resident = kilobytes("/proc/self/status", "VmRSS:"), mapped = parameters();
  const Step middle(model, 40);  // as many positions as the steps have on average
  std::vector<double> steps, alone, operators;
  for (int turn = 0; turn < 64; ++turn) {
    const auto step = Clock::now();
    session.decode(5 + turn);
    steps.push_back(milliseconds(step));
    const auto function = Clock::now();
    model.call("decode_b1", middle.inputs);
    alone.push_back(milliseconds(function));
    double sum = 0;
    model.profile(add_operator, &sum);
    model.call("decode_b1", middle.inputs);
    model.profile(nullptr);
    operators.push_back(sum);
  }
  std::printf("{\"start_ms\": %.2f, \"tokenizer_ms\": %.2f, \"start_processor_ms\": %.2f, \"resident_mb\": %.1f, "
              "\"parameters_touched_mb\": %.1f, \"overhead_mb\": %.1f, \"decode_ms\": %.3f, "
              "\"function_ms\": %.3f, \"operators_ms\": %.3f}\n",
              start, start - loaded, processor, resident / 1024, mapped / 1024, (resident - mapped) / 1024,
              median(steps), median(alone), median(operators));
  return 0;
}
