// What the C ABI promises, checked on a decoder artifact: `checks ARTIFACT RUNTIME FFI` says "ok".
// Built with sanitizers by test_native.py. `checks ARTIFACT RUNTIME FFI tokens` prints tokens instead.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "shiftadd/shiftadd.hpp"

using shiftadd::Model;
using shiftadd::Session;
using shiftadd::Tokens;

namespace {

#define CHECK(condition)                                                                        \
  do {                                                                                          \
    if (!(condition)) {                                                                         \
      std::fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, shiftadd_last_error()); \
      std::exit(1);                                                                             \
    }                                                                                           \
  } while (0)

Tokens prompt(int which, int32_t vocabulary) {
  std::mt19937 random(which);
  Tokens tokens(3 + 5 * static_cast<size_t>(which));
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocabulary));
  return tokens;
}

shiftadd::GenerateOptions options(bool seeded, int which) {
  shiftadd::GenerateOptions chosen;
  chosen.max_new_tokens = 64;
  chosen.ignore_eos = true;
  if (seeded) chosen.sampling = {0.9f, 40, 0.95f, 1.1f, which};
  return chosen;
}

void print_tokens(const Model& model) {
  Session session(model);
  for (const bool seeded : {false, true}) {
    for (int which = 0; which < 8; ++which) {
      session.reset();
      for (const int32_t token : session.generate(prompt(which, model.info().vocabulary), options(seeded, which))) {
        std::printf("%d ", token);
      }
      std::printf("\n");
    }
  }
}

void fails(shiftadd_status status, shiftadd_status expected, const char* text) {
  CHECK(status == expected);
  CHECK(std::strstr(shiftadd_last_error(), text) != nullptr);
}

void misuse(const Model& model) {
  Session session(model);
  const float* logits = nullptr;
  const int32_t outside = model.info().vocabulary, token = 1;
  shiftadd_session *one = session.get(), *twice[] = {one, one};
  const int32_t two[] = {1, 1};
  fails(shiftadd_model_load(nullptr, nullptr, nullptr), SHIFTADD_ERROR_USAGE, "NULL");
  shiftadd_model* none = nullptr;
  fails(shiftadd_model_load("/nowhere", nullptr, &none), SHIFTADD_ERROR_BAD_FILE, "does not exist");
  shiftadd_model_params params = shiftadd_model_default_params();
  params.threads = -1;
  fails(shiftadd_model_load("/nowhere", &params, &none), SHIFTADD_ERROR_USAGE, "threads is -1");
  params = shiftadd_model_default_params();
  params.load = 3;
  fails(shiftadd_model_load("/nowhere", &params, &none), SHIFTADD_ERROR_USAGE, "load is 3");
  CHECK(none == nullptr);
  fails(shiftadd_session_create(nullptr, nullptr), SHIFTADD_ERROR_USAGE, "NULL");
  fails(shiftadd_prefill(nullptr, &token, 1), SHIFTADD_ERROR_USAGE, "NULL");
  fails(shiftadd_prefill(one, nullptr, 1), SHIFTADD_ERROR_USAGE, "NULL");
  fails(shiftadd_prefill(one, &token, 0), SHIFTADD_ERROR_USAGE, "empty");
  fails(shiftadd_prefill(one, &outside, 1), SHIFTADD_ERROR_USAGE, "vocabulary");
  fails(shiftadd_logits(one, &logits, nullptr), SHIFTADD_ERROR_USAGE, "no logits");
  fails(shiftadd_session_truncate(one, 1), SHIFTADD_ERROR_USAGE, "cannot be cut");
  fails(shiftadd_decode_batch(twice, two, 2), SHIFTADD_ERROR_USAGE, "twice");
  fails(shiftadd_decode_batch(twice, two, 0), SHIFTADD_ERROR_USAGE, "no sessions");
  shiftadd_sampling sampling = shiftadd_sampling_default_params();
  sampling.top_p = NAN;
  int32_t drawn = -7;
  session.prefill({1});
  fails(shiftadd_sample(one, &sampling, 0, &drawn), SHIFTADD_ERROR_USAGE, "top_p");
  CHECK(drawn == -7);
  const Tokens long_prompt(static_cast<size_t>(model.info().context), 1);
  fails(shiftadd_prefill(one, long_prompt.data(), long_prompt.size()), SHIFTADD_ERROR_USAGE, "context");
  fails(shiftadd_call(model.get(), "nothing", nullptr, 0, nullptr), SHIFTADD_ERROR_USAGE, "NULL");
  shiftadd_result* result = nullptr;
  fails(shiftadd_call(model.get(), "nothing", nullptr, 0, &result), SHIFTADD_ERROR_USAGE, "no function");
  fails(shiftadd_call(model.get(), "embed", nullptr, 0, &result), SHIFTADD_ERROR_USAGE, "needs an input");
  size_t size = 0;
  fails(shiftadd_model_metadata(model.get(), "no.such", nullptr, 0, &size), SHIFTADD_ERROR_USAGE, "no.such");
  const void* data = nullptr;
  fails(shiftadd_model_file(model.get(), "../manifest.json", &data, &size), SHIFTADD_ERROR_USAGE, "no file");
  fails(shiftadd_model_file(model.get(), "model.so", &data, &size), SHIFTADD_ERROR_USAGE, "code");
  shiftadd_session_free(nullptr), shiftadd_model_free(nullptr), shiftadd_result_free(nullptr);
  shiftadd_session_cancel(nullptr);
}

void metadata(const Model& model) {
  CHECK(model.metadata("kind") == "decoder" && model.metadata("schema") == "1");
  CHECK(model.metadata("model.vocabulary") == std::to_string(model.info().vocabulary));
  char four[5];
  size_t size = 0;
  shiftadd::check(shiftadd_model_metadata(model.get(), "kind", four, sizeof four, &size));
  CHECK(std::string(four) == "deco" && size == 7);
  CHECK(model.file("tokenizer.json").front() == '{');
  CHECK(std::string(shiftadd_version()) == SHIFTADD_VERSION && shiftadd_abi_version() == SHIFTADD_ABI_VERSION);
}

// A tensor by name, from an address that kernels cannot load from, and one that fits nothing.
void functions(const Model& model) {
  const shiftadd_tensor* inputs = nullptr;
  size_t count = 0;
  shiftadd::check(shiftadd_function_signature(model.get(), "embed", &inputs, &count, nullptr, nullptr));
  CHECK(count == 1 && std::string(inputs[0].name) == "ids" && inputs[0].shape[0] == -1);
  const Tokens ids = {0, 7, 8, 9};
  const int64_t three[] = {3}, pair[] = {3, 1}, huge[] = {int64_t{1} << 50};
  int32_t* data = const_cast<int32_t*>(ids.data()) + 1;
  const auto result = model.call("embed", {{"ids", SHIFTADD_INT32, 1, three, data}});
  CHECK(result.size() == 1 && result[0].ndim == 2 && result[0].shape[0] == 3 && result[0].dtype == SHIFTADD_FLOAT32);
  const auto refused = [&](shiftadd_tensor given, const char* text) {
    shiftadd_result* out = nullptr;
    fails(shiftadd_call(model.get(), "embed", &given, 1, &out), SHIFTADD_ERROR_USAGE, text);
  };
  refused({"ids", SHIFTADD_FLOAT32, 1, three, data}, "dtype");
  refused({"ids", 99, 1, three, data}, "unknown");
  refused({"ids", SHIFTADD_INT32, 2, pair, data}, "shape");
  refused({"ids", SHIFTADD_INT32, -5, nullptr, data}, "shape");
  refused({"ids", SHIFTADD_INT32, 1, huge, nullptr}, "no data");
  refused({nullptr, SHIFTADD_INT32, 1, three, data}, "needs an input");
}

void count_calls(const char* op, double seconds, void* user) {
  CHECK(seconds >= 0);
  if (std::string(op).compare(0, 5, "embed") == 0) ++*static_cast<int*>(user);
}

// The operators of a call are reported, and no longer after the end.
void profile(const Model& model) {
  const int64_t one[] = {1};
  int32_t id = 7;
  int calls = 0;
  const std::vector<shiftadd_tensor> inputs = {{"ids", SHIFTADD_INT32, 1, one, &id}};
  model.profile(count_calls, &calls);
  model.call("embed", inputs);
  CHECK(calls == 1);
  model.profile(nullptr);
  model.call("embed", inputs);
  CHECK(calls == 1);
  fails(shiftadd_model_profile(nullptr, count_calls, &calls), SHIFTADD_ERROR_USAGE, "NULL");
}

std::vector<float> copied(const Session& session) {
  const auto [logits, size] = session.logits();
  return {logits, logits + size};
}

void forks(const Model& model) {
  Session session(model), again(model);
  const Tokens begin = prompt(2, model.info().vocabulary);
  session.prefill(begin);
  Session fork = session.fork();
  CHECK(copied(fork) == copied(session) && fork.tokens() == begin);
  session.decode(5);
  fork.decode(6);
  Session third = fork.fork();
  session = Session(model);  // the page that they share is now the forks' alone
  fork.decode(7);
  third.decode(7);
  CHECK(copied(fork) == copied(third));
  again.prefill(begin);
  again.decode(6);
  again.decode(7);
  CHECK(copied(again) == copied(fork));
  again.truncate(begin.size());
  again.decode(6);
  again.decode(7);
  CHECK(copied(again) == copied(fork));
}

void batches(const Model& model) {
  Session one(model), other(model);
  one.prefill(prompt(0, model.info().vocabulary));
  other.prefill(prompt(3, model.info().vocabulary));
  const Session alone = one.fork();
  shiftadd::check(shiftadd_decode(alone.get(), 5));
  shiftadd::decode_batch({&one, &other}, {5, 6});
  const std::vector<float> expected = copied(alone), found = copied(one);
  for (size_t i = 0; i < found.size(); ++i) CHECK(std::fabs(found[i] - expected[i]) < 1e-3f);
  CHECK(one.sample() == alone.sample());
}

void callbacks(const Model& model) {
  Session session(model);
  const Tokens begin = prompt(1, model.info().vocabulary);
  shiftadd_finish finish = SHIFTADD_FINISH_LENGTH;
  Tokens seen;
  const Tokens drawn = session.generate(begin, options(false, 1), [&](int32_t token) {
    seen.push_back(token);
    CHECK(shiftadd_session_reset(session.get()) == SHIFTADD_ERROR_USAGE);  // it may look, not touch
    CHECK(session.tokens().size() == begin.size() + seen.size() - 1);
    return seen.size() < 4;
  }, &finish);
  CHECK(drawn == seen && drawn.size() == 4 && finish == SHIFTADD_FINISH_CALLBACK);
  session.reset();
  try {
    session.generate(begin, options(false, 1), [](int32_t) -> bool { throw 7; });
    CHECK(false);
  } catch (int thrown) {
    CHECK(thrown == 7);
  }
  session.reset();
  size_t rows = 0;
  const auto count = [](const float*, size_t n, size_t, void* user) { *static_cast<size_t*>(user) += n; return 0; };
  shiftadd::check(shiftadd_score(session.get(), begin.data(), begin.size(), count, &rows));
  CHECK(rows == begin.size());
  const auto stop = [](const float*, size_t, size_t, void*) { return 1; };
  fails(shiftadd_score(session.get(), begin.data(), 1, stop, nullptr), SHIFTADD_CANCELLED, "callback");
}

void cancellation(const Model& model) {
  Session session(model);
  session.cancel();
  fails(shiftadd_decode(session.get(), 1), SHIFTADD_CANCELLED, "cancelled");
  session.decode(1);  // once, not for ever
  std::atomic<int> drawn{0};
  shiftadd_status status = SHIFTADD_OK;
  std::thread worker([&] {
    shiftadd::GenerateOptions endless = options(false, 1);
    try {
      session.reset();
      endless.max_new_tokens = 1 << 20;
      session.generate({1}, endless, [&](int32_t) {
        if (++drawn == 3) session.cancel();
        return true;
      });
    } catch (const shiftadd::Error& error) {
      status = error.status();
    }
  });
  worker.join();
  CHECK(status == SHIFTADD_CANCELLED && drawn == 3);
}

// Several sessions of one model in several threads, one of them cancelled by another, give what each
// gives alone; a session that is in use says so.
void threads(const Model& model) {
  std::vector<Tokens> expected(4), found(4);
  std::atomic<int> busy{0};
  for (int i = 0; i < 4; ++i) expected[i] = Session(model).generate(prompt(i, model.info().vocabulary), options(true, i));
  Session shared(model);
  std::vector<std::thread> all;
  for (int i = 0; i < 4; ++i) {
    all.emplace_back([&, i] {
      Session session(model);
      found[i] = session.generate(prompt(i, model.info().vocabulary), options(true, i));
      for (int turn = 0; turn < 20; ++turn) {
        const int32_t token = 1;
        if (shiftadd_decode(shared.get(), token) == SHIFTADD_ERROR_USAGE) ++busy;
        shiftadd_session_cancel(session.get());
      }
    });
  }
  for (std::thread& thread : all) thread.join();
  CHECK(found == expected);
  CHECK(shared.tokens().size() + static_cast<size_t>(busy) == 80 || shared.tokens().size() == static_cast<size_t>(model.info().context));
}

// Used up pages are a status; freed ones come back.
void pages(const std::string& path) {
  const Model model(path, {2, 1, true});
  const int32_t all = model.info().free_pages;
  Session session(model), other(model);
  session.prefill(Tokens(static_cast<size_t>(model.info().context), 1));
  CHECK(model.info().free_pages == 0);
  fails(shiftadd_decode(other.get(), 1), SHIFTADD_ERROR_NO_MEMORY, "no free page");
  session.reset();
  CHECK(model.info().free_pages == all);
  other.decode(1);
}

// Where the parameters lie changes no logit.
void places(const std::string& path, const Model& mapped) {
  const Model copied(path, {1, 1, false, SHIFTADD_LOAD_HUGEPAGES});
  Session here(mapped), there(copied);
  const Tokens tokens = prompt(0, mapped.info().vocabulary);
  here.prefill(tokens), there.prefill(tokens);
  here.decode(2), there.decode(2);
  const auto [expected, size] = here.logits();
  const auto [found, same] = there.logits();
  CHECK(size == same && std::memcmp(expected, found, size * sizeof(float)) == 0);
  CHECK(copied.info().parameter_bytes == mapped.info().parameter_bytes);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) return 2;
  const std::string path = arguments[1];
  try {
    shiftadd::check(shiftadd_load_runtime(arguments[2], arguments[3]));
    const Model model(path, {1, 8, false});
    if (count > 4) {
      print_tokens(model);
      return 0;
    }
    misuse(model);
    metadata(model);
    functions(model);
    profile(model);
    forks(model);
    batches(model);
    callbacks(model);
    cancellation(model);
    threads(model);
    pages(path);
    places(path, model);
    CHECK(model.info().free_pages == model.info().context / model.info().page * 8);
  } catch (const shiftadd::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::printf("ok\n");
  return 0;
}
