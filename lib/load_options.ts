/** What Model.load, follow and inspect take, checked before any of it reaches the addon. */
import {
  checkBoolean,
  checkCallback,
  checkFields,
  checkNumber,
  checkOneOf,
  checkSignal,
  INT32_MAX,
  kindOf,
  MAX_DRAFT_DEPTH,
  show,
} from './checks.js';
import { InvalidArgumentError } from './errors.js';
import type { NativeEngineOptions } from './native.js';
import type { InspectOptions, LoadOptions, NodeOptions } from './types.js';

const LOAD_FIELDS = [
  'download',
  'revision',
  'source',
  'device',
  'kernels',
  'compute',
  'deterministic',
  'kvCacheDtype',
  'prefillAttention',
  'threads',
  'tensorParallelSize',
  'enableExpertParallel',
  'dataParallelSize',
  'node',
  'maxModelLen',
  'maxNumSeqs',
  'maxBatchedTokens',
  'kvCacheTokens',
  'memoryUtilization',
  'maxWaiting',
  'prefixCache',
  'mtp',
  'draft',
  'speculative',
  'chatTemplate',
  'onProgress',
  'signal',
] as const satisfies readonly (keyof LoadOptions)[];

export function readLoadOptions(options: LoadOptions): NativeEngineOptions {
  checkFields('Model.load', options, LOAD_FIELDS);
  checkSignal(options.signal);
  checkCallback('onProgress', options.onProgress);
  const count = (name: keyof LoadOptions, fallback: number, min: number, max: number) =>
    checkNumber(name, options[name] ?? fallback, { min, max, integer: true });
  const kernels = ['auto', 'reference', 'generic', 'avx2', 'avx512', 'avx512bf16', 'amx', 'mma'] as const;
  return {
    device: checkOneOf('device', options.device ?? 'auto', ['auto', 'cpu', 'cuda', 'ascend', 'ascend-twin']),
    kernels: checkOneOf('kernels', options.kernels ?? 'auto', kernels),
    compute: checkOneOf('compute', options.compute ?? 'bfloat16', ['bfloat16', 'float32', 'int8']),
    deterministic: checkBoolean('deterministic', options.deterministic ?? false),
    kvCacheDtype: checkOneOf('kvCacheDtype', options.kvCacheDtype ?? 'auto', ['auto', 'bfloat16', 'fp8']),
    prefillAttention: checkOneOf('prefillAttention', options.prefillAttention ?? 'auto', ['auto', 'bfloat16', 'fp8']),
    threads: count('threads', 0, 0, 1024),
    tensorParallelSize: count('tensorParallelSize', 1, 1, 64),
    enableExpertParallel: checkBoolean('enableExpertParallel', options.enableExpertParallel ?? false),
    dataParallelSize: count('dataParallelSize', 1, 1, 64),
    ...readNode(options),
    maxModelLen: count('maxModelLen', 0, 0, INT32_MAX),
    maxNumSeqs: count('maxNumSeqs', 32, 1, 4096),
    maxBatchedTokens: count('maxBatchedTokens', 0, 0, 65_536),
    kvCacheTokens: count('kvCacheTokens', 0, 0, INT32_MAX),
    memoryUtilization:
      options.memoryUtilization === undefined
        ? 0
        : checkNumber('memoryUtilization', options.memoryUtilization, { min: 0, max: 1, above: true }),
    maxWaiting: count('maxWaiting', 1024, 1, 1 << 20),
    prefixCache: checkBoolean('prefixCache', options.prefixCache ?? true),
    mtp: checkBoolean('mtp', options.mtp ?? false),
    ...readSpeculation(options),
  };
}

type NodeFields = Pick<
  NativeEngineOptions,
  | 'firstDevice'
  | 'nodeRank'
  | 'nodeCount'
  | 'nodeAddress'
  | 'nodePort'
  | 'nodeSecret'
  | 'nodeAllowNoSecret'
  | 'nodesOnThisMachine'
  | 'nodeJoinMs'
  | 'nodeSilenceMs'
>;

const NODE_FIELDS = [
  'rank',
  'count',
  'address',
  'port',
  'secret',
  'allowNoSecret',
  'localRank',
  'onThisMachine',
  'joinMs',
  'silenceMs',
] as const satisfies readonly (keyof NodeOptions)[];

function readNode({ node, tensorParallelSize = 1 }: LoadOptions): NodeFields {
  const given: Partial<NodeOptions> = node ?? { rank: 0, count: 1 };
  checkFields('node', given, NODE_FIELDS);
  const count = (name: keyof NodeOptions, fallback: number | undefined, min: number, max: number) =>
    checkNumber(`node.${name}`, given[name] ?? fallback, { min, max, integer: true });
  const nodeCount = count('count', undefined, 1, 64);
  const text = (name: 'address' | 'secret', fallback: string) => {
    const value: unknown = given[name] ?? fallback;
    if (typeof value === 'string' && !value.includes('\0')) return value;
    throw new InvalidArgumentError(`node.${name}`, `node.${name}: expected a text, found ${kindOf(value)}`);
  };
  const onThisMachine = count('onThisMachine', 1, 1, nodeCount);
  if (nodeCount > 1 && tensorParallelSize % nodeCount !== 0) {
    throw new InvalidArgumentError(
      'tensorParallelSize',
      `tensorParallelSize: expected a multiple of the ${nodeCount} nodes, found ${tensorParallelSize}`,
    );
  }
  return {
    firstDevice: (count('localRank', 0, 0, onThisMachine - 1) * tensorParallelSize) / nodeCount,
    nodeRank: count('rank', undefined, 0, nodeCount - 1),
    nodeCount,
    nodeAddress: text('address', '127.0.0.1'),
    nodePort: count('port', 29500, 1, 65535),
    nodeSecret: text('secret', ''),
    nodeAllowNoSecret: checkBoolean('node.allowNoSecret', given.allowNoSecret ?? false),
    nodesOnThisMachine: onThisMachine,
    nodeJoinMs: count('joinMs', 600_000, 0, 86_400_000),
    nodeSilenceMs: count('silenceMs', 30_000, 100, 3_600_000),
  };
}

/** How `inspect` is to cut the model. */
export function readRanks(options: InspectOptions): { tensorParallelSize: number; enableExpertParallel: boolean } {
  const { tensorParallelSize = 1, enableExpertParallel = false } = options;
  return {
    tensorParallelSize: checkNumber('tensorParallelSize', tensorParallelSize, { min: 1, max: 64, integer: true }),
    enableExpertParallel: checkBoolean('enableExpertParallel', enableExpertParallel),
  };
}

type SpeculationFields = Pick<NativeEngineOptions, 'speculation' | 'draft' | 'maxDraft' | 'adaptiveDepth'>;

function readSpeculation({ draft, speculative }: LoadOptions): SpeculationFields {
  if (draft !== undefined && (typeof draft !== 'string' || draft === '' || draft.includes('\0'))) {
    throw new InvalidArgumentError('draft', `draft: expected the path of a draft folder, found ${show(draft)}`);
  }
  const asked = speculative === undefined && draft !== undefined ? {} : speculative;
  if (asked === undefined || asked === false) {
    return { speculation: 'none', draft: draft ?? '', maxDraft: 0, adaptiveDepth: true };
  }
  checkFields('speculative', asked, ['method', 'maxDepth', 'adaptive']);
  const { method = 'auto', maxDepth, adaptive = true } = asked;
  return {
    speculation: checkOneOf('speculative.method', method, ['auto', 'eagle3', 'mtp', 'ngram']),
    draft: draft ?? '',
    maxDraft:
      maxDepth === undefined
        ? 0
        : checkNumber('speculative.maxDepth', maxDepth, { min: 1, max: MAX_DRAFT_DEPTH, integer: true }),
    adaptiveDepth: checkBoolean('speculative.adaptive', adaptive),
  };
}
