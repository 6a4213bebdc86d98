/* Writes the logits of token ids, for the golden gate: a host without Python, for any machine.
 *
 *     golden_host ARTIFACT IDS LOGITS
 *
 * IDS is int32; LOGITS gets float32: the logits of every token by prefill, then again token by token. */
#include <shiftadd/shiftadd.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST = 1024 };

static void check(shiftadd_status status) {
  if (status == SHIFTADD_OK) return;
  fprintf(stderr, "golden_host: %s\n", shiftadd_last_error());
  exit(1);
}

static int32_t write_rows(const float* logits, size_t rows, size_t vocabulary, void* file) {
  return fwrite(logits, sizeof *logits * vocabulary, rows, file) != rows;
}

int main(int count, char** words) {
  if (count != 4) return 2;
  int32_t ids[MOST];
  FILE* given = fopen(words[2], "rb");
  FILE* found = fopen(words[3], "wb");
  if (!given || !found) return 2;
  size_t tokens = fread(ids, sizeof *ids, MOST, given);
  shiftadd_model_params params = shiftadd_model_default_params();
  params.threads = 1;
  shiftadd_model* model;
  shiftadd_session* session;
  check(shiftadd_model_load(words[1], &params, &model));
  check(shiftadd_session_create(model, &session));
  check(shiftadd_score(session, ids, tokens, write_rows, found));
  check(shiftadd_session_reset(session));
  for (size_t i = 0; i < tokens; ++i) {
    const float* logits;
    size_t vocabulary;
    check(shiftadd_decode(session, ids[i]));
    check(shiftadd_logits(session, &logits, &vocabulary));
    if (write_rows(logits, 1, vocabulary, found)) return 2;
  }
  shiftadd_session_free(session);
  shiftadd_model_free(model);
  return fclose(found) ? 2 : 0;
}
