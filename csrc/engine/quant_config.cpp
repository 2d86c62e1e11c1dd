#include "engine/quant_config.h"

namespace sigmoe {

using nlohmann::json;

namespace {

constexpr size_t kMaxListed = 4096;  // entries of an ignore list; every module name is tried against each

enum class Dialect {
  transformers,        // an entry matches any module whose name contains it
  compressed_tensors,  // exact names, class names, and "re:" expressions
  modelopt,            // names with * and ?
};

void add_patterns(const Fields& fields, const char* name, Dialect dialect, std::vector<NamePattern>& out) {
  const std::vector<std::string> entries = fields.strings(name);
  if (entries.size() > kMaxListed) {
    fields.problems().wrong(fields.path(name) + " has " + std::to_string(entries.size()) + " entries, at most " +
                            std::to_string(kMaxListed) + " are read");
    return;
  }
  for (const std::string& entry : entries) {
    if (entry.empty()) continue;
    try {
      switch (dialect) {
        case Dialect::transformers: out.push_back(NamePattern::substring(entry)); break;
        case Dialect::modelopt: out.push_back(NamePattern::glob(entry)); break;
        case Dialect::compressed_tensors:
          out.push_back(entry.starts_with("re:") ? NamePattern::regex(entry.substr(3)) : NamePattern::exact(entry));
          break;
      }
    } catch (const EngineError& error) {
      fields.problems().unsupported(fields.path(name) + ": " + error.what());
    }
  }
}

void parse_fp8(const Fields& fields, QuantConfig& out) {
  fields.must_be("fmt", "e4m3");
  const std::string scheme = fields.string("activation_scheme", "dynamic");
  if (scheme != "dynamic" && scheme != "static")
    fields.problems().unsupported(fields.path("activation_scheme") + " is '" + shortened(scheme) +
                                  "', must be dynamic or static");
  out.method = QuantMethod::fp8_tensor;
  if (fields.has("weight_block_size")) {
    out.method = QuantMethod::fp8_block;
    const std::vector<int64_t> block = fields.integers("weight_block_size", 1, 65536);
    if (block.size() == 2)
      out.block_n = block[0], out.block_k = block[1];
    else if (!block.empty())
      fields.problems().wrong(fields.path("weight_block_size") + " must hold two integers");
  }
  add_patterns(fields, "modules_to_not_convert", Dialect::transformers, out.ignored);
  add_patterns(fields, "ignored_layers", Dialect::transformers, out.ignored);
}

// The `weights` of one config group.
void parse_group_weights(const Fields& weights, QuantConfig& out) {
  Problems& problems = weights.problems();
  const int64_t bits = weights.integer("num_bits", 1, 64);
  const std::string type = weights.string("type", "int"), strategy = weights.string("strategy", "");
  weights.must_be("symmetric", true);
  weights.must_be("dynamic", false);
  const json* order = weights.find("actorder");
  if (order && *order != false && *order != "weight" && *order != "static")
    problems.unsupported(weights.path("actorder") + " is " + shortened(order->dump(), 40) + ", only weight is supported");
  if (bits == 8 && type == "float" && (strategy == "channel" || strategy == "tensor")) {
    out.method = strategy == "channel" ? QuantMethod::fp8_channel : QuantMethod::fp8_tensor;
  } else if (bits == 8 && type == "int" && strategy == "channel") {
    out.method = QuantMethod::int8_channel;
  } else if (bits == 4 && type == "int" && strategy == "group") {
    out.method = QuantMethod::int4_group;
    out.group = weights.integer("group_size", 8, 65536);
    if (out.group % 8 != 0) problems.unsupported(weights.path("group_size") + " must be a multiple of 8");
  } else if (bits != 0) {
    problems.unsupported(weights.path("num_bits") + ", type, strategy are " + std::to_string(bits) + ", '" +
                         shortened(type, 40) + "', '" + shortened(strategy, 40) +
                         "': only 8 float channel, 8 float tensor, 8 int channel and 4 int group are supported");
  }
}

// Activations may be quantised at run time by engines that multiply in FP8 or INT8; here they stay as they are.
void check_activations(const Fields& group, QuantMethod method) {
  if (!group.has("input_activations")) return;
  const Fields activations = group.object("input_activations");
  const int64_t bits = activations.integer("num_bits", 1, 64);
  const std::string type = activations.string("type", "int");
  if (method == QuantMethod::int4_group || bits != 8 || type != (method == QuantMethod::int8_channel ? "int" : "float"))
    group.problems().unsupported(group.path("input_activations") + " is " + std::to_string(bits) + " bit '" +
                                 shortened(type, 40) +
                                 "': only 8 bit float beside FP8 weights and 8 bit int beside INT8 weights are supported");
}

void parse_compressed_tensors(const Fields& fields, QuantConfig& out) {
  Problems& problems = fields.problems();
  const Fields sparsity = fields.object("sparsity_config");
  const std::string sparse_format = sparsity.string("format", "dense");
  if (sparse_format != "dense")
    problems.unsupported(sparsity.path("format") + " is '" + shortened(sparse_format) + "', only dense is supported");
  const std::string status = fields.string("quantization_status", "compressed");
  if (status != "compressed")
    problems.unsupported(fields.path("quantization_status") + " is '" + shortened(status) + "', only compressed is supported");

  const json* groups = fields.find("config_groups");
  if (!groups || !groups->is_object() || groups->size() != 1) {
    problems.unsupported(fields.path("config_groups") + " must hold exactly one group");
    return;
  }
  const std::string name = "config_groups." + shortened(groups->begin().key(), 40) + ".";
  const json& value = *groups->begin();
  if (!value.is_object()) return problems.wrong(fields.path(name.c_str()) + " must be an object");
  const Fields group(&value, fields.path(name.c_str()), problems);
  if (!group.has("weights")) return problems.unsupported(group.path("weights") + " is missing");
  parse_group_weights(group.object("weights"), out);
  check_activations(group, out.method);

  const std::string format = fields.string("format", group.string("format", ""));
  const char* wanted = out.method == QuantMethod::int4_group     ? "pack-quantized"
                       : out.method == QuantMethod::int8_channel ? "int-quantized"
                                                                 : "float-quantized";
  if (format != wanted && out.method != QuantMethod::none)
    problems.unsupported(fields.path("format") + " is '" + shortened(format) + "', must be " + wanted + " for these weights");

  bool every_linear = false;
  for (const std::string& target : group.strings("targets")) every_linear = every_linear || target == "Linear";
  if (!every_linear) {
    add_patterns(group, "targets", Dialect::compressed_tensors, out.targets);
    if (out.targets.empty()) problems.unsupported(group.path("targets") + " names no module");
  }
  add_patterns(fields, "ignore", Dialect::compressed_tensors, out.ignored);
}

void parse_modelopt(const Fields& fields, QuantConfig& out) {
  const std::string algorithm = fields.string("quant_algo", "");
  if (algorithm != "FP8")
    fields.problems().unsupported(fields.path("quant_algo") + " is '" + shortened(algorithm) + "', only FP8 is supported");
  out.method = QuantMethod::fp8_tensor;
  add_patterns(fields, "exclude_modules", Dialect::modelopt, out.ignored);
  add_patterns(fields, "ignore", Dialect::modelopt, out.ignored);
}

}  // namespace

const char* quant_method_name(QuantMethod method) {
  switch (method) {
    case QuantMethod::none: return "none";
    case QuantMethod::fp8_block: return "FP8 blocks";
    case QuantMethod::fp8_channel: return "FP8 per channel";
    case QuantMethod::fp8_tensor: return "FP8 per tensor";
    case QuantMethod::int8_channel: return "INT8 per channel";
    case QuantMethod::int4_group: return "INT4 groups";
  }
  return "?";
}

bool QuantConfig::applies_to(const std::string& module) const {
  if (method == QuantMethod::none) return false;
  const auto any = [&](const std::vector<NamePattern>& patterns) {
    for (const NamePattern& pattern : patterns)
      if (pattern.matches(module)) return true;
    return false;
  };
  return (targets.empty() || any(targets)) && !any(ignored);
}

QuantConfig parse_quant_config(const Fields& config, const Fields& modelopt) {
  QuantConfig out;
  Problems& problems = config.problems();
  const bool in_config = config.has("quantization_config");
  if (in_config) {
    const Fields fields = config.object("quantization_config");
    const std::string method = fields.string("quant_method", "");
    if (method == "fp8")
      parse_fp8(fields, out);
    else if (method == "compressed-tensors")
      parse_compressed_tensors(fields, out);
    else if (method == "modelopt")
      parse_modelopt(fields, out);
    else
      problems.unsupported(fields.path("quant_method") + " is '" + shortened(method) +
                           "', must be fp8, compressed-tensors or modelopt");
  }
  if (modelopt.has("quantization")) {
    QuantConfig other;
    parse_modelopt(modelopt.object("quantization"), other);
    if (in_config && other.method != out.method)
      problems.wrong(std::string("quantization_config says ") + quant_method_name(out.method) +
                     " and hf_quant_config.json says " + quant_method_name(other.method));
    other.ignored.insert(other.ignored.end(), out.ignored.begin(), out.ignored.end());
    out.method = other.method;
    out.ignored = std::move(other.ignored);
  }
  return out;
}

}  // namespace sigmoe
