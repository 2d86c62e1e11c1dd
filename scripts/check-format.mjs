// clang-format over the C++ of this repository (--write puts it right). Versions of clang-format disagree in details, so
// only the one the style was written with is asked; without it the check says so and passes.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './tools.mjs';

const VERSION = 14;
const folders = ['csrc', 'kernels', 'test/native', 'bench'];

const program = ['clang-format', `clang-format-${VERSION}`].find((name) => {
  const { stdout } = spawnSync(name, ['--version'], { encoding: 'utf8' });
  return new RegExp(`version ${VERSION}\\.`).test(stdout ?? '');
});
const files = folders
  .filter((folder) => existsSync(join(root, folder)))
  .flatMap((folder) => readdirSync(join(root, folder), { recursive: true }).map((name) => join(folder, name)))
  .filter((name) => /\.(h|cpp|inl)$/.test(name) && !name.includes('third_party'));

if (program === undefined) {
  console.log(`C++ format: not checked, clang-format ${VERSION} is not on the PATH`);
} else if (process.argv.includes('--write')) {
  const { status } = spawnSync(program, ['-i', ...files], { cwd: root, stdio: 'inherit' });
  console.log(`C++ format: ${files.length} files written`);
  process.exitCode = status ?? 1;
} else {
  const wrong = files.filter((file) => spawnSync(program, ['--dry-run', '--Werror', file], { cwd: root }).status !== 0);
  for (const file of wrong) console.error(`${file}: not as clang-format writes it`);
  console.log(
    wrong.length === 0 ? 'C++ format: clean' : `C++ format: ${wrong.length} of ${files.length} files need npm run format`,
  );
  process.exitCode = wrong.length === 0 ? 0 : 1;
}
