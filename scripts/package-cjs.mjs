// The CommonJS entry, for Node versions that cannot `require` an ES module (before 20.19 and 22.12): dist/index.cjs holds the
// library, dist/index.mjs hands the same objects to `import`. Whichever way such a Node is asked, there is one set of
// classes; a newer Node takes dist/index.js for both, by the condition "module-sync" in package.json.
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { root, ScriptError } from './tools.mjs';

const dist = join(root, 'dist');

/** Writes dist/index.cjs, dist/index.mjs and the declarations of dist/cjs from the compiled library. */
export async function buildCommonJs() {
  const { rolldown } = await import('rolldown');
  const bundle = await rolldown({
    input: join(dist, 'index.js'),
    platform: 'node',
    external: isRequireable,
    plugins: [{ name: 'worker-path', transform: moveWorkerPath }],
  });
  const { output } = await bundle.write({ file: join(dist, 'index.cjs'), format: 'cjs', exports: 'named' });
  await bundle.close();
  const names = output[0].exports.join(', ');
  writeFileSync(join(dist, 'index.mjs'), `import sigmoe from './index.cjs';\n\nexport const { ${names} } = sigmoe;\n`);
  copyDeclarations();
}

// Everything that is not of this package stays outside, but for the one dependency that exists as ES modules only.
function isRequireable(id) {
  return !id.startsWith('.') && !id.startsWith('/') && !/^typebox(\/|$)/.test(id);
}

// dist/index.cjs stands one folder above the module that starts this worker.
function moveWorkerPath(code, id) {
  if (!id.endsWith('/dist/chat/template_thread.js')) return null;
  const parts = code.split("'./template_worker.js', import.meta.url");
  if (parts.length !== 2) throw new ScriptError(`${id}: the path of its worker is not where scripts/package-cjs.mjs looks`);
  return parts.join("'./chat/template_worker.js', import.meta.url");
}

// A declaration speaks of CommonJS when the package.json nearest to it does.
function copyDeclarations() {
  const folder = join(dist, 'cjs');
  rmSync(folder, { recursive: true, force: true });
  const seen = new Set();
  const copy = (file) => {
    if (seen.has(file)) return;
    seen.add(file);
    const target = join(folder, relative(dist, file));
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(file, target);
    for (const [, path] of readFileSync(file, 'utf8').matchAll(/(?:from|import\()\s*'(\.[^']+)\.js'/g)) {
      copy(join(dirname(file), `${path}.d.ts`));
    }
  };
  copy(join(dist, 'index.d.ts'));
  writeFileSync(join(folder, 'package.json'), '{ "type": "commonjs" }\n');
}
