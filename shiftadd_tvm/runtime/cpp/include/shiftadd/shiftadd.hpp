// shiftadd.hpp: shiftadd.h for C++17, header only. Handles are freed by themselves, failures are thrown.
//
//     shiftadd::Model model("app");
//     shiftadd::Session session(model);
//     for (int32_t token : session.generate(prompt, {.max_new_tokens = 64})) ...   // C++20's names
//
// What each call does, and which thread may make it, stands in shiftadd.h.
#ifndef SHIFTADD_SHIFTADD_HPP_
#define SHIFTADD_SHIFTADD_HPP_

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "shiftadd/shiftadd.h"

namespace shiftadd {

// A failed call: its status, and its sentence as what().
class Error : public std::runtime_error {
 public:
  Error(shiftadd_status status, const std::string& sentence)
      : std::runtime_error(sentence), status_(status) {}
  shiftadd_status status() const noexcept { return status_; }

 private:
  shiftadd_status status_;
};

// Throw an Error unless `status` is SHIFTADD_OK.
inline void check(shiftadd_status status) {
  if (status != SHIFTADD_OK) throw Error(status, shiftadd_last_error());
}

using Tokens = std::vector<int32_t>;

struct ModelOptions {
  int32_t threads = 0;
  int32_t sequences = 4;
  bool check_hashes = false;
  shiftadd_load load = SHIFTADD_LOAD_AS_COMPILED;
};

struct Sampling {
  float temperature = 0;
  int32_t top_k = 0;
  float top_p = 1;
  float repetition_penalty = 1;
  int64_t seed = 0;

  shiftadd_sampling params() const noexcept {
    return {temperature, top_k, top_p, repetition_penalty, seed};
  }
};

struct GenerateOptions {
  int32_t max_new_tokens = 128;
  Sampling sampling = {};
  bool ignore_eos = false;
};

// The outputs of a function that was called by name.
class Result {
 public:
  explicit Result(shiftadd_result* handle) : handle_(handle, shiftadd_result_free) {}
  size_t size() const noexcept { return shiftadd_result_count(handle_.get()); }
  shiftadd_tensor operator[](size_t index) const {
    shiftadd_tensor tensor;
    check(shiftadd_result_tensor(handle_.get(), index, &tensor));
    return tensor;
  }

 private:
  std::unique_ptr<shiftadd_result, decltype(&shiftadd_result_free)> handle_;
};

// A loaded artifact. Copies are the same model.
class Model {
 public:
  explicit Model(const std::string& path, const ModelOptions& options = {}) {
    shiftadd_model_params params = shiftadd_model_default_params();
    params.threads = options.threads;
    params.sequences = options.sequences;
    params.check_hashes = options.check_hashes;
    params.load = options.load;
    shiftadd_model* handle = nullptr;
    check(shiftadd_model_load(path.c_str(), &params, &handle));
    handle_.reset(handle, shiftadd_model_free);
  }

  shiftadd_model_info info() const {
    shiftadd_model_info info;
    check(shiftadd_model_get_info(handle_.get(), &info));
    return info;
  }

  // One value of the manifest, such as metadata("model.type").
  std::string metadata(const std::string& path) const {
    size_t size = 0;
    check(shiftadd_model_metadata(handle_.get(), path.c_str(), nullptr, 0, &size));
    std::string value(size + 1, '\0');
    check(shiftadd_model_metadata(handle_.get(), path.c_str(), value.data(), value.size(), &size));
    value.resize(size);
    return value;
  }

  // The bytes of a file of the artifact, such as "tokenizer.json".
  std::string file(const std::string& name) const {
    const void* data = nullptr;
    size_t size = 0;
    check(shiftadd_model_file(handle_.get(), name.c_str(), &data, &size));
    return std::string(static_cast<const char*>(data), size);
  }

  // Report the seconds of every operator's call, on the model's thread, until the next call of profile().
  void profile(shiftadd_profile_callback callback, void* user = nullptr) const {
    check(shiftadd_model_profile(handle_.get(), callback, user));
  }

  Result call(const std::string& function, const std::vector<shiftadd_tensor>& inputs) const {
    shiftadd_result* result = nullptr;
    check(shiftadd_call(handle_.get(), function.c_str(), inputs.data(), inputs.size(), &result));
    return Result(result);
  }

  shiftadd_model* get() const noexcept { return handle_.get(); }

 private:
  std::shared_ptr<shiftadd_model> handle_;
};

// One sequence. Moves, and forks; never copies by accident.
class Session {
 public:
  // A token that was drawn; return false to end the text after it.
  using OnToken = std::function<bool(int32_t)>;

  explicit Session(const Model& model) : Session(created(model)) {}

  Session fork() const {
    shiftadd_session* other = nullptr;
    check(shiftadd_session_fork(handle_.get(), &other));
    return Session(other);
  }

  void reset() { check(shiftadd_session_reset(handle_.get())); }
  void truncate(size_t length) { check(shiftadd_session_truncate(handle_.get(), length)); }
  void cancel() noexcept { shiftadd_session_cancel(handle_.get()); }  // from any thread
  void prefill(const Tokens& tokens) {
    check(shiftadd_prefill(handle_.get(), tokens.data(), tokens.size()));
  }
  void decode(int32_t token) { check(shiftadd_decode(handle_.get(), token)); }

  Tokens tokens() const {
    const int32_t* begin = nullptr;
    size_t count = 0;
    check(shiftadd_session_tokens(handle_.get(), &begin, &count));
    return Tokens(begin, begin + count);
  }

  // The logits float32 [vocabulary] of the last token; valid until the session changes.
  std::pair<const float*, size_t> logits() const {
    std::pair<const float*, size_t> view;
    check(shiftadd_logits(handle_.get(), &view.first, &view.second));
    return view;
  }

  int32_t sample(const Sampling& sampling = {}, int32_t step = 0) const {
    const shiftadd_sampling params = sampling.params();
    int32_t token = 0;
    check(shiftadd_sample(handle_.get(), &params, step, &token));
    return token;
  }

  // The new tokens. What `on_token` throws ends the text, and is thrown again here.
  Tokens generate(const Tokens& prompt, const GenerateOptions& options = {},
                  const OnToken& on_token = {}, shiftadd_finish* finish = nullptr) {
    Relay relay{on_token, nullptr};
    shiftadd_generate_params params = shiftadd_generate_default_params();
    params.sampling = options.sampling.params();
    params.max_new_tokens = options.max_new_tokens;
    params.ignore_eos = options.ignore_eos;
    params.callback = on_token ? &Relay::call : nullptr;
    params.user = &relay;
    Tokens tokens(options.max_new_tokens > 0 ? static_cast<size_t>(options.max_new_tokens) : 0);
    size_t count = 0;
    const shiftadd_status status = shiftadd_generate(handle_.get(), prompt.data(), prompt.size(), &params,
                                                     tokens.data(), &count, finish);
    if (relay.thrown) std::rethrow_exception(relay.thrown);
    check(status);
    tokens.resize(count);
    return tokens;
  }

  shiftadd_session* get() const noexcept { return handle_.get(); }

 private:
  struct Relay {  // no exception may pass through the library
    const OnToken& on_token;
    std::exception_ptr thrown;

    static int32_t call(int32_t token, void* user) {
      Relay* relay = static_cast<Relay*>(user);
      try {
        return relay->on_token(token) ? 0 : 1;
      } catch (...) {
        relay->thrown = std::current_exception();
        return 1;
      }
    }
  };

  explicit Session(shiftadd_session* handle) : handle_(handle, shiftadd_session_free) {}

  static shiftadd_session* created(const Model& model) {
    shiftadd_session* handle = nullptr;
    check(shiftadd_session_create(model.get(), &handle));
    return handle;
  }

  std::unique_ptr<shiftadd_session, decltype(&shiftadd_session_free)> handle_;
};

// Append one token to each of several different sessions of one model, in one step.
inline void decode_batch(const std::vector<const Session*>& sessions, const Tokens& tokens) {
  if (sessions.size() != tokens.size()) {
    throw Error(SHIFTADD_ERROR_USAGE, "Give one token for each session.");
  }
  std::vector<shiftadd_session*> handles;
  for (const Session* session : sessions) handles.push_back(session->get());
  check(shiftadd_decode_batch(handles.data(), tokens.data(), handles.size()));
}

}  // namespace shiftadd

#endif  // SHIFTADD_SHIFTADD_HPP_
