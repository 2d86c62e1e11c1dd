/** The flags of `bench serve`, named as vLLM names them, and how their texts become values. */
import { type Command, InvalidArgumentError } from 'commander';
import { type Goodput, METRICS, type Metric } from '../../../bench/index.js';
import { integer, number } from '../../flags.js';
import type { DatasetFlags } from './dataset.js';

export interface ServeFlags extends DatasetFlags {
  backend: 'openai' | 'vllm' | 'openai-chat';
  baseUrl?: string;
  host: string;
  port: number;
  endpoint?: string;
  model?: string;
  tokenizer?: string;
  header?: Record<string, string>;
  insecure?: boolean;
  readyCheckTimeoutSec: number;
  requestRate?: number;
  burstiness: number;
  maxConcurrency?: number[];
  numWarmups: number;
  ignoreEos?: boolean;
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  extraBody?: Record<string, unknown>;
  goodput?: Goodput;
  percentileMetrics?: Metric[];
  metricPercentiles?: number[];
  label?: string;
  metadata?: Record<string, string>;
  format: 'vllm' | 'sglang';
  saveResult?: boolean;
  saveDetailed?: boolean;
  appendResult?: boolean;
  resultDir: string;
  resultFilename?: string;
  html?: string;
  json?: boolean;
}

export function addServeFlags(command: Command): Command {
  return command
    .optionsGroup('Server:')
    .option(
      '--backend <name>',
      'openai, vllm: /v1/completions | openai-chat: /v1/chat/completions',
      oneOf('openai', 'vllm', 'openai-chat'),
      'openai',
    )
    .option('--base-url <url>', 'in place of host and port')
    .option('--host <name>', '', '127.0.0.1')
    .option('--port <n>', '', integer, 8000)
    .option('--endpoint <path>', 'default: that of the backend')
    .option('--model <id>', 'default: the first one that the server lists')
    .option('--tokenizer <folder>', 'folder with the tokenizer.json of the model; default: the model, where it is a folder')
    .option('--header <name=value...>', 'headers of every request', pairs)
    .option('--ready-check-timeout-sec <s>', 'how long to wait for a server that is still starting', number, 0)
    .option('--insecure', 'accept a certificate that cannot be verified')
    .optionsGroup('Load:')
    .option('--request-rate <n>', 'requests a second; default: inf, all at once', rate)
    .option('--burstiness <shape>', 'of the gamma distribution of arrivals; 1: Poisson, less: burstier, inf: even', rate, 1)
    .option('--max-concurrency <n,...>', 'requests under way at once; a list measures one after the other', concurrencies)
    .option('--num-warmups <n>', 'requests before those that count', integer, 0)
    .optionsGroup('Request:')
    .option('--ignore-eos', 'every answer to its full length (an extra of vLLM and sigmoe); the default of random prompts')
    .option('--no-ignore-eos', 'answers may end by themselves')
    .option('--temperature <n>', '', number)
    .option('--top-p <n>', '', number)
    .option('--top-k <n>', '', number)
    .option('--min-p <n>', '', number)
    .option('--extra-body <json>', 'further fields of every request', jsonObject)
    .optionsGroup('Results:')
    .option('--goodput <metric:ms...>', 'count requests that reach these targets: ttft, tpot, e2el', goodput)
    .option(
      '--percentile-metrics <names>',
      'of ttft, tpot, itl (the default), e2el, client_queue_time, e2el_including_client_queue',
      metricNames,
    )
    .option('--metric-percentiles <list>', 'default: 99', percentList)
    .option('--label <text>', 'begins the name of the result file')
    .option('--metadata <key=value...>', 'further fields of the result', pairs)
    .option('--format <name>', 'keys of the result: vllm | sglang', oneOf('vllm', 'sglang'), 'vllm')
    .option('--save-result', 'write the result to a file')
    .option('--save-detailed', 'with the figures, texts and errors of every request')
    .option('--append-result', 'add a line to the result file in place of replacing it')
    .option('--result-dir <folder>', '', '.')
    .option('--result-filename <name>', 'default: made of label, load, model and time')
    .option('--html <file>', 'write a report with plots')
    .option('--json', 'print JSON in place of the table');
}

function oneOf<T extends string>(...names: T[]): (text: string) => T {
  return (text) => {
    const found = names.find((name) => name === text);
    if (found === undefined) throw new InvalidArgumentError(`There are ${names.join(', ')}.`);
    return found;
  };
}

/** name=value, as often as given. */
function pairs(text: string, before: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf('=');
  if (at < 1) throw new InvalidArgumentError('Write it as name=value.');
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) };
}

function rate(text: string): number {
  return text === 'inf' ? Infinity : number(text);
}

function jsonObject(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  } catch {
    // said below
  }
  throw new InvalidArgumentError('Write it as a JSON object, such as {"priority": 1}.');
}

function concurrencies(text: string): number[] {
  return text.split(',').map((part) => {
    const value = number(part);
    if (Number.isInteger(value) && value > 0) return value;
    throw new InvalidArgumentError(`${JSON.stringify(part)} is not a positive whole number.`);
  });
}

function percentList(text: string): number[] {
  return text.split(',').map((part) => {
    const value = number(part);
    if (value >= 0 && value <= 100) return value;
    throw new InvalidArgumentError(`${JSON.stringify(part)} is not between 0 and 100.`);
  });
}

function metricNames(text: string): Metric[] {
  return text.split(',').map((part) => {
    const found = METRICS.find((metric) => metric === part.trim());
    if (found !== undefined) return found;
    throw new InvalidArgumentError(`There is no ${JSON.stringify(part)} among ${METRICS.join(', ')}.`);
  });
}

/** ttft:200 tpot:50, with spaces or commas between. */
function goodput(text: string, before: Goodput = {}): Goodput {
  const targets = { ...before };
  for (const part of text.split(',')) {
    const [metric, value = ''] = part.split(':');
    if (metric !== 'ttft' && metric !== 'tpot' && metric !== 'e2el') {
      throw new InvalidArgumentError('Write targets as metric:ms, of ttft, tpot and e2el.');
    }
    targets[metric] = number(value);
    if (!(number(value) >= 0)) throw new InvalidArgumentError(`${JSON.stringify(value)} is no time in ms.`);
  }
  return targets;
}
