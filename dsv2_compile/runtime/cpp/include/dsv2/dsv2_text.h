/* Text to tokens and back, with the tokenizer of an engine directory; no engine need be loaded. In a library built with
 * DSV2_TEXT, by the rules of dsv2.h.
 *
 * What a tokenizer.json asks for and this does not do is DSV2_MODEL when it is opened, never ignored.
 */
#ifndef DSV2_TEXT_H
#define DSV2_TEXT_H

#include "dsv2/dsv2.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct { uint64_t id; } dsv2_text;
typedef struct { uint64_t id; } dsv2_text_stream;

/* Reads tokenizer.json and tokenizer_config.json, and checks their SHA-256. DSV2_USAGE: the engine has none. */
DSV2_API dsv2_code dsv2_text_open(const char *engine_path, dsv2_text *out, dsv2_error *error);
/* ``utf8``: ``nbytes`` bytes, which need not end in zero. *count is how many ids there are, of which the first
 * ``capacity`` are written; ids may be NULL where that is 0. The bos token is among them if the files ask for it. */
DSV2_API dsv2_code dsv2_text_encode(dsv2_text text, const char *utf8, int64_t nbytes, int32_t *ids, int64_t capacity,
                                    int64_t *count, dsv2_error *error);
/* *nbytes is how long the UTF-8 is, of which the first ``capacity`` bytes are written, with no zero after them. Special
 * tokens and ids without a token have no text; bytes that are no UTF-8 become U+FFFD. */
DSV2_API dsv2_code dsv2_text_decode(dsv2_text text, const int32_t *ids, int64_t count, char *utf8, int64_t capacity,
                                    int64_t *nbytes, dsv2_error *error);
/* Later calls on it and on its streams are DSV2_USAGE. */
DSV2_API dsv2_code dsv2_text_close(dsv2_text text, dsv2_error *error);

/* Decodes a growing sequence of tokens, and never gives out part of a character. */
DSV2_API dsv2_code dsv2_text_stream_open(dsv2_text text, dsv2_text_stream *out, dsv2_error *error);
/* The text that ``token`` completes, possibly none. It ends in zero, and is valid until the next call on the stream. */
DSV2_API dsv2_code dsv2_text_stream_push(dsv2_text_stream stream, int32_t token, const char **utf8, int64_t *nbytes,
                                         dsv2_error *error);
/* What was held back: U+FFFD for a character that never came to its end. */
DSV2_API dsv2_code dsv2_text_stream_end(dsv2_text_stream stream, const char **utf8, int64_t *nbytes, dsv2_error *error);
DSV2_API dsv2_code dsv2_text_stream_close(dsv2_text_stream stream, dsv2_error *error);

#ifdef __cplusplus
}
#endif
#endif
