// One sequence of a decoder: its tokens, its pages, the logits of its last token.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "model.h"

namespace shiftadd::internal {

// Rows of logits float32 [rows, vocabulary]; returns false to stop.
using OnLogits = std::function<bool(const float* logits, size_t rows)>;

class Session {
 public:
  explicit Session(std::shared_ptr<Model> model) : model_(std::move(model)) {}
  Session(const Session& other);  // a fork: shares the pages
  Session& operator=(const Session&) = delete;
  ~Session() { truncate(0); }

  Model& model() const { return *model_; }
  const std::shared_ptr<Model>& shared_model() const { return model_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const float* logits();      // in the machine's memory; nullptr: none
  Object logits_row() const;  // float32 [1, vocabulary], aligned; Failure usage where there is none
  void truncate(size_t length);
  void reset();
  void cancel() { cancelled_.store(true); }
  void stop_if_cancelled();  // Failure cancelled, once

  // Append tokens; with `on_logits` (may be empty), hand over the logits of every one.
  void prefill(const int32_t* tokens, size_t count, const OnLogits& on_logits);
  void decode(int32_t token);
  static void decode(const std::vector<Session*>& sessions, const int32_t* tokens);
  int32_t sample(const shiftadd_sampling& sampling, int32_t step);

  // Marks the session as used for as long as it lives. Failure usage where a call uses it already.
  class Use {
   public:
    Use(Session& session, bool reads);
    ~Use();
    Use(const Use&) = delete;

   private:
    Session& session_;
    bool entered_;
  };

 private:
  void check(const int32_t* tokens, size_t count) const;
  void reserve(size_t count);
  std::vector<int32_t> table() const;
  void look_up(const int32_t* tokens, size_t count);
  void append(const int32_t* tokens, size_t count, bool last, const OnLogits& on_logits);
  void score(const Object& hidden, size_t count, const OnLogits& on_logits);
  void keep_logits(Object owner, size_t row);
  Object step(const char* function, const Object& ids, const Object& tables, const Object& lengths);
  int32_t draw(const shiftadd_sampling& sampling, int32_t step);

  std::shared_ptr<Model> model_;
  std::vector<int32_t> tokens_, pages_;
  Object logits_owner_;
  size_t logits_row_ = 0;
  std::atomic<bool> cancelled_{false};
  std::atomic<std::thread::id> user_{};
};

// Failure usage for values that no distribution has.
void check_sampling(const shiftadd_sampling& sampling);

// The handle behind `session`; Failure usage for NULL.
Session& checked(shiftadd_session* session);

}  // namespace shiftadd::internal

struct shiftadd_session {
  shiftadd::internal::Session session;
};
