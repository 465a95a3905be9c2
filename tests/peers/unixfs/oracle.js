// Reads one JSON object a line, {"path": PATH, "profile": NAME}, and answers each with {"cid": CID} on a line of its
// own: what the reference importer in JavaScript makes of that file or directory. Hidden entries are left out,
// symlinks are kept, empty directories are taken along. Nothing is stored.
import * as fs from 'node:fs'
import * as path from 'node:path'
import * as readline from 'node:readline'
import { importer } from 'ipfs-unixfs-importer'

const CHUNK = 1 << 20
const ROOT = 'root'

function * walk (from, to) {
  const stat = fs.lstatSync(from)
  if (stat.isSymbolicLink()) {
    yield { path: to, link: fs.readlinkSync(from) }
  } else if (stat.isFile()) {
    yield { path: to, content: fs.createReadStream(from, { highWaterMark: CHUNK }) }
  } else {
    const names = fs.readdirSync(from).filter(name => !name.startsWith('.'))
    if (names.length === 0) {
      yield { path: to }
    }
    for (const name of names) {
      yield * walk(path.join(from, name), `${to}/${name}`)
    }
  }
}

const nowhere = { put: async cid => cid }

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { path: from, profile } = JSON.parse(line)
  let root
  // One file at a time keeps the number of open files small.
  const options = { profile, fileImportConcurrency: 1 }
  for await (const entry of importer(walk(from, ROOT), nowhere, options)) {
    root = entry
  }
  if (root.path !== ROOT) {
    throw new Error(`the last entry of ${from} is ${root.path}, not the root`)
  }
  console.log(JSON.stringify({ cid: root.cid.toString() }))
}
