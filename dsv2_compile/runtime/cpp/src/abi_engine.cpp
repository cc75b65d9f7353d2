// The functions of dsv2.h: engines.
#include <algorithm>
#include <string>

#include "abi.h"

using dsv2::Engine;
using dsv2::guarded;
using dsv2::Handles;
using dsv2::require_given;

extern "C" {

const char* dsv2_version(void) { return DSV2_VERSION; }

dsv2_code dsv2_engine_load(const char* path, const dsv2_load_options* options, dsv2_engine* out, dsv2_error* error) {
  return guarded(error, [&] {
    require_given(path, "path");
    require_given(out, "out");
    dsv2::LoadOptions chosen;
    if (options) {
      chosen = {options->threads, options->cache_tokens, options->onnxruntime ? options->onnxruntime : ""};
    }
    out->id = Handles::all().add(Engine::load(path, chosen));
  });
}

dsv2_code dsv2_engine_info_get(dsv2_engine engine, dsv2_engine_info* out, dsv2_error* error) {
  return guarded(error, [&] {
    require_given(out, "out");
    const auto found = Handles::all().find<Engine>(engine.id);
    const dsv2::Pages pages = found->pages();
    const dsv2::Manifest& manifest = found->manifest();
    const dsv2::ModelConfig& model = manifest.model;
    *out = {};
    out->vocab_size = model.vocab_size;
    out->layers = model.num_hidden_layers;
    out->cache_dim = model.cache_dim();
    out->max_batch_size = manifest.max_batch_size;
    out->max_seq_len = manifest.max_seq_len;
    out->page_size = pages.size;
    out->page_count = pages.count;
    out->pages_free = pages.free;
    out->bos_token = model.bos_token_id;
    out->eos_count = static_cast<int64_t>(std::min(model.eos_token_ids.size(), std::size(out->eos_tokens)));
    std::copy_n(model.eos_token_ids.begin(), out->eos_count, out->eos_tokens);
    out->verified = manifest.verified;
    dsv2::copy(manifest.backend, out->backend);
    dsv2::copy(manifest.target, out->target);
  });
}

dsv2_code dsv2_engine_close(dsv2_engine engine, dsv2_error* error) {
  return guarded(error, [&] {
    Handles::all().find<Engine>(engine.id)->close();
    Handles::all().take<Engine>(engine.id);
  });
}

}  // extern "C"
