/** What `sigmoe doctor` looks at and says. */
import type { ModelSource } from '../hub/index.js';

export interface DoctorOptions extends Pick<ModelSource, 'revision' | 'source'> {
  /** A model folder, or the id of a model in the cache: says whether it fits, and at what speed at most. */
  model?: string | undefined;
  /** Tokens of the one sequence that the estimates are for. Default 4096, or the model's context where that is less. */
  context?: number | undefined;
  /** Only this type of weights. Default `auto`: what the checkpoint holds, and what `quantize` would make of it. */
  dtype?: FitDtype | 'auto' | undefined;
  signal?: AbortSignal | undefined;
}

export type FitDtype = 'float32' | 'bf16' | 'fp8' | 'int8' | 'int4';

/** One line of the table. `note`: nothing is wrong, but something is worth knowing. */
export interface Finding {
  topic: string;
  status: 'ok' | 'note' | 'bad';
  detail: string;
}

export interface Gpu {
  name: string;
  /** PCI address. */
  bus: string;
  memoryBytes: number | null;
  freeBytes: number | null;
  /** "PCIe 32.0 GT/s x16" */
  link: string | null;
}

export interface MachineFacts {
  cpu: { name: string; cores: number; features: string[]; numaNodes: number };
  memory: { totalBytes: number; availableBytes: number };
  hugePages: { transparent: string | null; reserved: number; free: number };
}

export interface GpuFacts {
  gpus: Gpu[];
  driver: string | null;
  /** Links between GPUs, as nvidia-smi counts them over all of them; null without it. */
  nvlinks: number | null;
}

/** A library that was looked for. */
export interface LibraryFacts {
  name: string;
  path: string | null;
  lookedIn: string[];
}

export interface Bandwidth {
  gbps: number;
  /** `measured` on this machine just now, or `listed` in the data sheet. */
  source: 'measured' | 'listed';
}

/** The memory that a model is to fit. */
export interface FitDevice {
  /** As in `LoadOptions.device`. */
  device: 'cuda' | 'cpu';
  availableBytes: number;
  /** Null where it is not known. */
  bandwidth: Bandwidth | null;
}

/** Whether a model fits, with weights of one type. */
export interface Fit {
  dtype: FitDtype;
  /** What the checkpoint holds; else a copy has to be made first. */
  stored: boolean;
  weightBytes: number;
  kvBytes: number;
  /** Tokens of a step, as a load on this device chooses them: fewer on a GPU that would have no room for the usual ones. */
  maxBatchedTokens: number;
  /** Estimated: activations and logits of a step. */
  workspaceBytes: number;
  totalBytes: number;
  fits: boolean;
  /** Bytes that one token of one sequence at the end of its context reads. */
  bytesPerToken: number;
  /** The most one sequence can reach: bandwidth over those bytes. Null where the bandwidth is not known. */
  tokensPerSecond: number | null;
}

export interface ModelFit {
  model: string;
  context: number;
  device: string;
  availableBytes: number;
  bandwidth: Bandwidth | null;
  rows: Fit[];
}

export interface DoctorReport {
  /** The device that `auto` picks works. */
  ok: boolean;
  device: string | null;
  findings: Finding[];
  machine: MachineFacts;
  gpu: GpuFacts;
  libraries: LibraryFacts[];
  addon: { path: string; kind: string; reason: string };
  cache: { path: string; freeBytes: number | null };
  node: string;
  fit?: ModelFit;
}
