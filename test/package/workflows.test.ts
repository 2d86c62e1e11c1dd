/** The workflows and manifests, which nobody here can run: what they name exists, and what they promise is in them. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { describe, expect, test } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import type { ServeFlags } from '../../lib/cli/commands/serve/flags.js';
import { serveCommand } from '../../lib/cli/commands/serve.js';
import { nodeOptions } from '../../lib/cli/nodes.js';
import { Model } from '../../lib/index.js';
import { buildApp } from '../../lib/server/index.js';
import { nano, root } from '../helpers/files.js';

interface Step {
  uses?: string;
  run?: string;
}
interface Workflow {
  on: object;
  permissions: Record<string, string>;
  jobs: Record<string, { uses?: string; needs?: string; steps?: Step[]; 'timeout-minutes'?: number }>;
}

const read = (path: string): string => readFileSync(join(root, path), 'utf8');
const scripts = (JSON.parse(read('package.json')) as { scripts: Record<string, string> }).scripts;

describe.each(readdirSync(join(root, '.github/workflows')))('%s', (name) => {
  const text = read(join('.github/workflows', name));
  const { permissions, jobs } = parse(text) as Workflow;
  const steps = Object.values(jobs).flatMap((job) => job.steps ?? []);

  test('actions are pinned to a commit, whose version stands beside it', () => {
    const used = [...text.matchAll(/uses: (\S+)(.*)/g)].filter(([, action = '']) => !action.startsWith('./'));
    expect(used.length).toBeGreaterThan(0);
    for (const [line] of used) expect(line).toMatch(/@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
  });

  test('nothing is published, and jobs may read unless they attach', () => {
    expect(permissions).toEqual({ contents: 'read' });
    expect(text).not.toMatch(/npm publish|NODE_AUTH_TOKEN|NPM_TOKEN/);
  });

  test('every job ends, follows jobs that exist, and calls scripts that exist', () => {
    for (const [id, job] of Object.entries(jobs)) {
      if (job.needs !== undefined) expect(jobs).toHaveProperty(job.needs);
      if (job.uses === undefined) expect(job['timeout-minutes'], id).toBeGreaterThan(0);
      else expect(existsSync(join(root, job.uses))).toBe(true);
    }
    const commands = steps.flatMap(({ run }) => run ?? []).join('\n');
    for (const [, script = ''] of commands.matchAll(/npm run ([\w:]+)/g)) expect(scripts).toHaveProperty(script);
    for (const [, file = ''] of commands.matchAll(/\b(scripts\/\S+\.mjs|\.ci\/run)/g))
      expect(existsSync(join(root, file)), file).toBe(true);
    // Programs of the tests, copied beside the installed package.
    for (const [, file = ''] of commands.matchAll(/node (\w+\.[cm]js)/g)) {
      expect(existsSync(join(root, 'test/package/consumer', file)), file).toBe(true);
    }
  });
});

test('the packages beside the main one have its version, and are never installed by it', () => {
  const main = JSON.parse(read('package.json')) as Record<string, unknown> & { version: string; dependencies: object };
  expect(Object.keys(main.dependencies).filter((name) => name.startsWith('@sigmoe/'))).toEqual([]);
  expect(main).not.toHaveProperty('optionalDependencies');
  for (const name of readdirSync(join(root, 'packages'))) {
    const { version, peerDependencies } = JSON.parse(read(`packages/${name}/package.json`)) as {
      version: string;
      peerDependencies?: { sigmoe: string };
    };
    expect(version, name).toBe(main.version);
    if (peerDependencies !== undefined) expect(peerDependencies.sigmoe, name).toBe(main.version);
  }
});

interface Container {
  args: string[];
  ports?: { name: string; containerPort: number }[];
  resources: { requests: object; limits: Record<string, string | number> };
  startupProbe: Probe;
  readinessProbe: Probe;
  livenessProbe: Probe;
}
interface Probe {
  httpGet: { path: string; port: string };
  periodSeconds: number;
  failureThreshold: number;
}
interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string };
  resources?: string[];
  patches?: { path: string }[];
  spec: {
    selector: { app?: string; matchLabels?: object };
    egress?: object[];
    template: { metadata: { labels: object }; spec: { terminationGracePeriodSeconds: number; containers: [Container] } };
  };
}

describe('deploy/kubernetes', () => {
  const folder = 'deploy/kubernetes';
  const documents = readdirSync(join(root, folder), { recursive: true })
    .map(String)
    .filter((name) => name.endsWith('.yaml'))
    .flatMap((name) =>
      parseAllDocuments(read(join(folder, name))).map((document) => {
        expect(document.errors, name).toEqual([]);
        return { name, manifest: document.toJS() as Manifest };
      }),
    );
  const find = (file: string): Manifest => {
    const found = documents.find(({ name }) => name === file);
    if (found === undefined) throw new Error(`${file} is not in ${folder}`);
    return found.manifest;
  };

  test('every document says what it is, and kustomizations name files that exist', () => {
    for (const { name, manifest } of documents) {
      expect(manifest, name).toMatchObject({ apiVersion: expect.any(String), kind: expect.any(String) });
      const named = [...(manifest.resources ?? []), ...(manifest.patches ?? []).map(({ path }) => path)];
      if (manifest.kind === 'Kustomization') expect(named.length).toBeGreaterThan(0);
      for (const path of manifest.kind === 'Kustomization' ? named : []) {
        expect(existsSync(join(root, folder, name, '..', path)), `${name}: ${path}`).toBe(true);
      }
    }
  });

  test('every flag is one of sigmoe serve', () => {
    const known = new Set((serveCommand() as Command).options.flatMap(({ long }) => long ?? []));
    for (const file of ['base/deployment.yaml', 'nvidia/gpu.yaml']) {
      const [{ args }] = find(file).spec.template.spec.containers;
      expect(args[0]).toBe('serve');
      const flags = args.filter((arg) => arg.startsWith('--')).map((arg) => arg.split('=')[0] ?? '');
      expect(flags.length).toBeGreaterThan(4);
      expect(flags.filter((flag) => !known.has(flag))).toEqual([]);
    }
  });

  test('the nodes of a LeaderWorkerSet take the same flags, find the leader, and share a secret', () => {
    interface Pod {
      metadata: { labels: Record<string, string> };
      spec: {
        terminationGracePeriodSeconds: number;
        containers: [Container & { env: { name: string; valueFrom?: { secretKeyRef?: { name: string } } }[] }];
      };
    }
    const set = find('nodes/leaderworkerset.yaml') as unknown as {
      kind: string;
      spec: { leaderWorkerTemplate: { size: number; restartPolicy: string; leaderTemplate: Pod; workerTemplate: Pod } };
    };
    const { size, restartPolicy, leaderTemplate: leader, workerTemplate: worker } = set.spec.leaderWorkerTemplate;
    expect([set.kind, restartPolicy]).toEqual(['LeaderWorkerSet', 'RecreateGroupOnPodRestart']);
    const [{ args, env, ports }] = leader.spec.containers;
    expect(worker.spec.containers[0]).toMatchObject({ args, env });
    expect(env.find(({ name }) => name === 'SIGMOE_WORLD_SECRET')?.valueFrom?.secretKeyRef?.name).toBeDefined();

    // What the controller would put in place of its variables.
    const command = serveCommand() as Command;
    command.exitOverride().action(() => {});
    const place = { LWS_GROUP_SIZE: String(size), LWS_LEADER_ADDRESS: 'sigmoe-0.sigmoe.sigmoe' };
    const flagsOf = (rank: number): ServeFlags => {
      const values: Record<string, string> = { ...place, LWS_WORKER_INDEX: String(rank) };
      const filled = args
        .slice(1)
        .map((arg) => arg.replace(/\$\((\w+)\)/g, (_, name: string) => values[name] ?? expect.fail(name)));
      command.parse(filled, { from: 'user' });
      return command.opts<ServeFlags>();
    };
    const port = ports?.find(({ name }) => name === 'world')?.containerPort;
    for (let rank = 0; rank < size; rank++) {
      const flags = flagsOf(rank);
      expect(nodeOptions(flags, {})).toMatchObject({ rank, count: size, address: place.LWS_LEADER_ADDRESS, port });
      expect((flags.tensorParallelSize ?? 0) % size).toBe(0);
      expect(leader.spec.terminationGracePeriodSeconds).toBeGreaterThan(flags.drainTimeout);
    }
    // Only leaders answer; pods of the set, whoever they are, reach each other.
    const selected = find('nodes/service.yaml').spec.selector;
    expect(leader.metadata.labels).toEqual(selected);
    expect(worker.metadata.labels).not.toEqual(selected);
    const { podSelector, ingress, egress } = find('nodes/network.yaml').spec as unknown as {
      podSelector: { matchLabels: Record<string, string> };
      ingress: { from: { podSelector?: object }[]; ports?: object[] }[];
      egress: { to: { podSelector?: object }[] }[];
    };
    for (const pod of [leader, worker]) expect(pod.metadata.labels).toMatchObject(podSelector.matchLabels);
    expect(ingress[0]).toEqual({ from: [{ podSelector }] });
    expect(egress[0]).toEqual({ to: [{ podSelector }] });
  });

  test('probes ask a route of the server on its port, and allow for loading and draining', async () => {
    const model = await Model.load(nano);
    const app = buildApp(model, { modelName: 'nano' });
    const { spec } = find('base/deployment.yaml').spec.template;
    const [container] = spec.containers;
    for (const probe of [container.startupProbe, container.readinessProbe, container.livenessProbe]) {
      expect((await app.inject(probe.httpGet.path)).statusCode).toBe(200);
      expect(container.ports?.map(({ name }) => name)).toContain(probe.httpGet.port);
    }
    await app.close();
    await model.dispose();
    const port = container.args.find((arg) => arg.startsWith('--port='))?.split('=')[1];
    expect(container.ports?.[0]?.containerPort).toBe(Number(port));
    const drain = Number(container.args.find((arg) => arg.startsWith('--drain-timeout='))?.split('=')[1]);
    expect(spec.terminationGracePeriodSeconds).toBeGreaterThan(drain);
    // Reading 104 GB at 100 MB/s takes 17 minutes.
    expect(container.startupProbe.periodSeconds * container.startupProbe.failureThreshold).toBeGreaterThan(17 * 60);
  });

  test('a GPU is asked for, the service finds the pods, and they may connect to nobody', () => {
    const [{ resources }] = find('nvidia/gpu.yaml').spec.template.spec.containers;
    expect(resources.limits['nvidia.com/gpu']).toBe(1);
    const { labels } = find('base/deployment.yaml').spec.template.metadata;
    expect(labels).toEqual(find('base/deployment.yaml').spec.selector.matchLabels);
    expect(labels).toEqual(find('base/service.yaml').spec.selector);
    expect(find('base/network.yaml').spec.egress).toEqual([]);
  });
});
