// The C ABI: sessions, and what is computed with them.
#include <algorithm>
#include <deque>

#include "failure.h"
#include "result.h"
#include "session.h"

using namespace shiftadd::internal;

namespace {

template <class T>
void require(const T* pointer, const char* name) {
  if (!pointer) misuse(std::string(name) + " is NULL.");
}

// Run the body while no other call may use the session.
template <class Body>
shiftadd_status with(shiftadd_session* handle, bool reads, Body&& body) {
  return guarded([&] {
    Session& session = checked(handle);
    const Session::Use use(session, reads);
    body(session);
  });
}

struct Drawn {
  int32_t* tokens;  // may be NULL
  size_t count = 0;
  shiftadd_finish finish = SHIFTADD_FINISH_LENGTH;

  void add(int32_t token) {
    if (tokens) tokens[count] = token;
    ++count;
  }
};

void generate(Session& session, const int32_t* prompt, size_t count, const shiftadd_generate_params& params,
              Drawn& drawn) {
  if (count > 0) require(prompt, "prompt");
  if (params.max_new_tokens < 1) {
    misuse("max_new_tokens is " + std::to_string(params.max_new_tokens) + ", expected 1 or more.");
  }
  check_sampling(params.sampling);
  if (count > 0) session.prefill(prompt, count, {});
  const size_t context = session.model().decoder().context;
  while (true) {
    session.stop_if_cancelled();
    const int32_t token = session.sample(params.sampling, static_cast<int32_t>(drawn.count));
    if (!params.ignore_eos && session.model().is_eos(token)) {
      drawn.finish = SHIFTADD_FINISH_EOS;
      return;
    }
    drawn.add(token);
    const bool ends = params.callback && params.callback(token, params.user) != 0;
    drawn.finish = ends ? SHIFTADD_FINISH_CALLBACK : SHIFTADD_FINISH_LENGTH;
    if (ends || drawn.count == static_cast<size_t>(params.max_new_tokens)) return;
    if (session.tokens().size() == context) {
      drawn.finish = SHIFTADD_FINISH_CONTEXT;
      return;
    }
    session.decode(token);
  }
}

}  // namespace

shiftadd_status shiftadd_session_create(shiftadd_model* model, shiftadd_session** session) {
  return guarded([&] {
    checked(model).require_decoder();
    require(session, "session");
    *session = new shiftadd_session{Session(model->model)};
  });
}

void shiftadd_session_free(shiftadd_session* session) { delete session; }

shiftadd_status shiftadd_session_reset(shiftadd_session* session) {
  return with(session, false, [](Session& s) { s.reset(); });
}

shiftadd_status shiftadd_session_truncate(shiftadd_session* session, size_t length) {
  return with(session, false, [&](Session& s) { s.truncate(length); });
}

shiftadd_status shiftadd_session_fork(shiftadd_session* session, shiftadd_session** fork) {
  return with(session, true, [&](Session& s) {
    require(fork, "fork");
    *fork = new shiftadd_session{Session(s)};
  });
}

shiftadd_status shiftadd_session_tokens(shiftadd_session* session, const int32_t** tokens, size_t* count) {
  return with(session, true, [&](Session& s) {
    require(tokens, "tokens"), require(count, "count");
    *tokens = s.tokens().data(), *count = s.tokens().size();
  });
}

void shiftadd_session_cancel(shiftadd_session* session) {
  if (session) session->session.cancel();
}

shiftadd_status shiftadd_prefill(shiftadd_session* session, const int32_t* tokens, size_t count) {
  return with(session, false, [&](Session& s) {
    require(tokens, "tokens");
    s.prefill(tokens, count, {});
  });
}

shiftadd_status shiftadd_score(shiftadd_session* session, const int32_t* tokens, size_t count,
                               shiftadd_logits_callback callback, void* user) {
  return with(session, false, [&](Session& s) {
    require(tokens, "tokens");
    if (!callback) misuse("callback is NULL.");
    const size_t vocabulary = s.model().decoder().vocabulary;
    s.prefill(tokens, count, [&](const float* logits, size_t rows) {
      return callback(logits, rows, vocabulary, user) == 0;
    });
  });
}

shiftadd_status shiftadd_decode(shiftadd_session* session, int32_t token) {
  return with(session, false, [&](Session& s) { s.decode(token); });
}

shiftadd_status shiftadd_decode_batch(shiftadd_session* const* sessions, const int32_t* tokens, size_t count) {
  return guarded([&] {
    require(sessions, "sessions"), require(tokens, "tokens");
    if (count == 0) misuse("There are no sessions; give at least one.");
    std::vector<Session*> all;
    for (size_t i = 0; i < count; ++i) {
      all.push_back(&checked(sessions[i]));
      if (&all[i]->model() != &all[0]->model()) misuse("The sessions are of different models; expected one model.");
      if (std::count(all.begin(), all.end(), all[i]) > 1) misuse("A session is given twice; expected different ones.");
    }
    std::deque<Session::Use> uses;
    for (Session* session : all) uses.emplace_back(*session, false);
    Session::decode(all, tokens);
  });
}

shiftadd_status shiftadd_logits(shiftadd_session* session, const float** logits, size_t* vocabulary) {
  return with(session, true, [&](Session& s) {
    require(logits, "logits");
    if (!s.logits()) misuse("The session has no logits; prefill or decode first.");
    *logits = s.logits();
    if (vocabulary) *vocabulary = s.model().decoder().vocabulary;
  });
}

shiftadd_status shiftadd_logits_result(shiftadd_session* session, shiftadd_result** result) {
  return with(session, true, [&](Session& s) {
    require(result, "result");
    s.logits();  // from now on in the machine's memory
    *result = new shiftadd_result{session->session.shared_model(), s.model().function("logits"), {s.logits_row()}};
  });
}

shiftadd_sampling shiftadd_sampling_default_params(void) { return {0, 0, 1, 1, 0}; }

shiftadd_status shiftadd_sample(shiftadd_session* session, const shiftadd_sampling* sampling, int32_t step,
                                int32_t* token) {
  return with(session, false, [&](Session& s) {
    require(token, "token");
    *token = s.sample(sampling ? *sampling : shiftadd_sampling_default_params(), step);
  });
}

shiftadd_generate_params shiftadd_generate_default_params(void) {
  shiftadd_generate_params params = {};
  params.sampling = shiftadd_sampling_default_params();
  params.max_new_tokens = 128;
  return params;
}

shiftadd_status shiftadd_generate(shiftadd_session* session, const int32_t* prompt, size_t prompt_count,
                                  const shiftadd_generate_params* params, int32_t* tokens, size_t* token_count,
                                  shiftadd_finish* finish) {
  Drawn drawn{tokens};
  const shiftadd_status status = with(session, false, [&](Session& s) {
    generate(s, prompt, prompt_count, params ? *params : shiftadd_generate_default_params(), drawn);
  });
  if (token_count) *token_count = drawn.count;
  if (finish && status == SHIFTADD_OK) *finish = drawn.finish;
  return status;
}
