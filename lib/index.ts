/** The public API: every name a caller may use, written out. */
export {
  type Client,
  ClientError,
  type ClientOptions,
  type ClientRequestOptions,
  ClientStream,
  createClient,
  type ModelPage,
} from './client.js';
export {
  type DoctorOptions,
  type DoctorReport,
  doctor,
  type Finding,
  type Fit,
  type FitDtype,
  type ModelFit,
} from './doctor/index.js';
export {
  AbortError,
  BusyError,
  CheckpointError,
  DeviceError,
  DisposedError,
  DownloadError,
  EngineError,
  type ErrorCode,
  InternalError,
  InvalidArgumentError,
  IoError,
  NotFoundError,
  OutOfMemoryError,
  UnsupportedError,
} from './errors.js';
export { follow } from './follow.js';
export type { Generation } from './generate.js';
export {
  type ModelSource,
  type PullOptions,
  type PullProgress,
  type PullResult,
  pull,
  type ResolveOptions,
  resolveModel,
  type Source,
} from './hub/index.js';
export { bench, devices, inspect, nativeVersion } from './inspect.js';
export { JsonNumber, type JsonValue, parseJson } from './json.js';
export { type MemoryPlan, type MemoryPlanOptions, memoryPlan } from './memory_plan.js';
export { Model } from './model.js';
export {
  type KindError,
  type QuantizeFormat,
  type QuantizeOptions,
  type QuantizeProgress,
  type QuantizeReport,
  quantize,
} from './quantize/index.js';
export {
  RECORDING_FILE,
  recordSelftest,
  type SelftestCaseReport,
  type SelftestOptions,
  type SelftestRecording,
  type SelftestReport,
  saveRecording,
  selftest,
} from './selftest/index.js';
export type { TokenDecoder } from './text/bytes.js';
export { type DecodeOptions, type EncodeOptions, Tokenizer, type TokenizerOptions } from './tokenizer.js';
export type {
  BatchOptions,
  BatchProgress,
  BenchOptions,
  ChatOptions,
  ChatRequest,
  ChatTemplateSource,
  Chunk,
  DeviceStatus,
  FollowOptions,
  FunctionCall,
  GenerateRequest,
  GenerateResult,
  GenerationStart,
  InspectOptions,
  JsonObject,
  LoadOptions,
  LoadProgress,
  LogitsOptions,
  Message,
  ModelInfo,
  ModelStats,
  NodeOptions,
  Prompt,
  PromptRequest,
  SamplingOptions,
  SpeculationMethod,
  SpeculativeOptions,
  StructuredOutput,
  TextPart,
  TokenLogprob,
  Tool,
  ToolCall,
} from './types.js';
