/* shiftadd_text.h: text to token ids and back, beside an artifact. The text part of libshiftadd's C ABI.
 *
 *     shiftadd_tokenizer   the tokenizer of an artifact, and the form of its conversations
 *     shiftadd_text_stream the text of tokens that come one after the other
 *
 * It needs neither a loaded model nor TVM. It reads byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and
 * SentencePiece-like BPE (Llama 2, Gemma) from a tokenizer.json, and gives the ids that the `tokenizers`
 * library gives. Any other kind of tokenizer is refused by name. docs/text.md says more.
 *
 * Errors. As in shiftadd.h: a status, and shiftadd_last_error(). Text is UTF-8; input that is not is
 * refused.
 *
 * Threads. Any function may be called from any thread. A tokenizer never changes, so that many threads may
 * use one at once; a stream is used by one call at a time. Streams keep their tokenizer alive.
 *
 * Buffers. A function that fills a buffer copies at most `capacity` bytes or tokens and sets `size` or
 * `count` to how many there are in all; call it with capacity 0 to learn that. A text ends with a 0 in the
 * buffer, cut short if need be; `size` does not count it. */
#ifndef SHIFTADD_SHIFTADD_TEXT_H_
#define SHIFTADD_SHIFTADD_TEXT_H_

#include "shiftadd/shiftadd.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct shiftadd_tokenizer shiftadd_tokenizer;
typedef struct shiftadd_text_stream shiftadd_text_stream;

/* ---------------------------------------------------------------- tokenizers */

/* Open the tokenizer in an artifact's folder. */
SHIFTADD_API shiftadd_status shiftadd_tokenizer_load(const char* path, shiftadd_tokenizer** tokenizer);

/* The same files in memory, such as shiftadd_model_file() gives them; only `tokenizer` must be there
 * (NULL: no such file). They may be freed afterwards. */
typedef struct shiftadd_tokenizer_files {
  const void* tokenizer; /* tokenizer.json */
  size_t tokenizer_size;
  const void* config; /* tokenizer_config.json */
  size_t config_size;
  const void* chat_form; /* chat_form.json, which `shiftadd-tvm compile` writes */
  size_t chat_form_size;
} shiftadd_tokenizer_files;

SHIFTADD_API shiftadd_status shiftadd_tokenizer_create(const shiftadd_tokenizer_files* files,
                                                       shiftadd_tokenizer** tokenizer);
SHIFTADD_API void shiftadd_tokenizer_free(shiftadd_tokenizer* tokenizer);

/* How many tokens there are, added ones included; the token that begins a text, -1 if there is none; the
 * token that is written `text`, -1 if there is none. 0 or -1 for a NULL tokenizer. */
SHIFTADD_API size_t shiftadd_tokenizer_count(const shiftadd_tokenizer* tokenizer);
SHIFTADD_API int32_t shiftadd_tokenizer_bos(const shiftadd_tokenizer* tokenizer);
SHIFTADD_API int32_t shiftadd_tokenizer_id(const shiftadd_tokenizer* tokenizer, const char* text,
                                           size_t text_size);

/* How a token is written in tokenizer.json. SHIFTADD_ERROR_USAGE where there is no token of that id. */
SHIFTADD_API shiftadd_status shiftadd_tokenizer_token(const shiftadd_tokenizer* tokenizer, int32_t id,
                                                      char* buffer, size_t capacity, size_t* size);

typedef enum shiftadd_around {
  SHIFTADD_AROUND_NOTHING = 0, /* the text alone */
  SHIFTADD_AROUND_BOS = 1,     /* BOS before it where the model expects one: what `shiftadd-tvm run` does */
  SHIFTADD_AROUND_TEMPLATE = 2 /* all that the tokenizer's own post-processor adds: for encoders */
} shiftadd_around;

/* The tokens of a text; special tokens that stand in it are found. */
SHIFTADD_API shiftadd_status shiftadd_tokenizer_encode(const shiftadd_tokenizer* tokenizer,
                                                       const char* text, size_t text_size,
                                                       shiftadd_around around, int32_t* tokens,
                                                       size_t capacity, size_t* count);

/* The text of tokens; special ones are left out unless `keep_special`, ids of no token always. */
SHIFTADD_API shiftadd_status shiftadd_tokenizer_decode(const shiftadd_tokenizer* tokenizer,
                                                       const int32_t* tokens, size_t count,
                                                       int32_t keep_special, char* buffer, size_t capacity,
                                                       size_t* size);

/* ---------------------------------------------------------------- streams */

/* What decodes the tokens that follow `prompt` (which may be NULL for `prompt_count` 0). */
SHIFTADD_API shiftadd_status shiftadd_text_stream_create(const shiftadd_tokenizer* tokenizer,
                                                         const int32_t* prompt, size_t prompt_count,
                                                         shiftadd_text_stream** stream);
SHIFTADD_API void shiftadd_text_stream_free(shiftadd_text_stream* stream);

/* The text that a token completes: nothing (size 0) while a character is unfinished. `text` ends with a 0,
 * and is valid until the next call on the stream. */
SHIFTADD_API shiftadd_status shiftadd_text_stream_push(shiftadd_text_stream* stream, int32_t token,
                                                       const char** text, size_t* size);

/* The rest, once no token will follow: what an unfinished character decodes to. */
SHIFTADD_API shiftadd_status shiftadd_text_stream_finish(shiftadd_text_stream* stream, const char** text,
                                                         size_t* size);

/* ---------------------------------------------------------------- conversations */

typedef struct shiftadd_message {
  const char* role;    /* "system", "user" or "assistant" */
  const char* content; /* ends with a 0 */
} shiftadd_message;

/* 1 if conversations can be written as the model wants them, 0 if not. */
SHIFTADD_API int32_t shiftadd_tokenizer_has_chat(const shiftadd_tokenizer* tokenizer);

/* A conversation as the model wants it, open for the assistant's reply; encode it with
 * SHIFTADD_AROUND_NOTHING. SHIFTADD_ERROR_UNSUPPORTED where the artifact holds no chat_form.json: the
 * model has no chat template, or `compile` found none of the common forms in it. */
SHIFTADD_API shiftadd_status shiftadd_tokenizer_render(const shiftadd_tokenizer* tokenizer,
                                                       const shiftadd_message* messages, size_t count,
                                                       char* buffer, size_t capacity, size_t* size);

#ifdef __cplusplus
}
#endif

#endif /* SHIFTADD_SHIFTADD_TEXT_H_ */
