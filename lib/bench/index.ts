/** What the command line uses of the benchmarks. They stand on the public API alone, as any program could. */
export type { Api, Target } from './client.js';
export { type Compared, compareResults } from './compare.js';
export { type BenchRequest, bundledRequests, fileRequests, type RandomLengths, randomRequests } from './dataset.js';
export { type Goodput, METRICS, type Measurement, type Metric } from './measurement.js';
export { benchLatency, benchThroughput, OFFLINE_SAMPLING } from './offline.js';
export { latencyText, serveText, throughputText } from './report/console.js';
export { type Facts, latencyReport, type ReportRun, serveReport } from './report/page.js';
export {
  LATENCY_PERCENTS,
  latencyResult,
  type ResultFields,
  type ServeSetup,
  sglangResult,
  stamp,
  throughputResult,
  vllmResult,
} from './results.js';
export { benchServe, firstModel, type ServeRun, untilReady } from './serve.js';
export { benchSpeculation, type SpeculationRow } from './speculation.js';
