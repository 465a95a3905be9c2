// Reads one JSON object a line and answers each with {"cid": CID} on a line of its own: what the reference importer in
// JavaScript makes of a file or directory. Nothing is stored. A question holds
//   path        what to import; hidden entries are left out, symlinks kept, empty directories taken along
//   names, text instead of a path: a directory of files of these names, each with the text as its content
//   profile     a profile of IPIP-499
//   chunker     {"size": N} or {"min": N, "avg": N, "max": N} for Rabin; without it the profile's
//   links       most links of a file's node; without it the profile's
//   trickle     true for the trickle layout, with the leaves that Kubo gives it
//   rawLeaves, cidVersion, mtime, mode, directoryBytes, fanoutBits: what differs from the profile
import * as fs from 'node:fs'
import * as path from 'node:path'
import * as readline from 'node:readline'
import { importer } from 'ipfs-unixfs-importer'
import { fixedSize, rabin } from 'ipfs-unixfs-importer/chunker'
import { balanced, trickle } from 'ipfs-unixfs-importer/layout'

const READ = 1 << 20
const ROOT = 'root'

function * walk (from, to, metadata) {
  const stat = fs.lstatSync(from)
  if (stat.isSymbolicLink()) {
    yield { path: to, link: fs.readlinkSync(from), mtime: metadata.mtime }
  } else if (stat.isFile()) {
    const content = stat.size < READ ? [fs.readFileSync(from)] : fs.createReadStream(from, { highWaterMark: READ })
    yield { path: to, content, ...metadata }
  } else {
    const names = fs.readdirSync(from).filter(name => !name.startsWith('.'))
    if (names.length === 0 || metadata.mtime != null || metadata.mode != null) {
      yield { path: to, ...metadata }
    }
    for (const name of names) {
      yield * walk(path.join(from, name), `${to}/${name}`, metadata)
    }
  }
}

function * listed (names, text) {
  const content = new TextEncoder().encode(text)
  for (const name of names) {
    yield { path: `${ROOT}/${name}`, content }
  }
}

// An empty file is one empty leaf, whatever cuts it.
function neverNothing (chunker) {
  return async function * (source) {
    let any = false
    for await (const chunk of chunker(source)) {
      any = true
      yield chunk
    }
    if (!any) {
      yield new Uint8Array()
    }
  }
}

function optionsOf (question) {
  // One file at a time keeps the number of open files small.
  const options = { profile: question.profile, fileImportConcurrency: 1 }
  const { chunker, links } = question
  if (chunker?.size != null) {
    options.chunker = fixedSize({ chunkSize: chunker.size })
  } else if (chunker != null) {
    const { min, avg, max } = chunker
    options.chunker = neverNothing(rabin({ minChunkSize: min, avgChunkSize: avg, maxChunkSize: max }))
  }
  const most = links ?? (question.profile === 'unixfs-v0-2015' ? 174 : 1024)
  if (question.trickle) {
    Object.assign(options, { layout: trickle({ maxChildrenPerNode: most }), leafType: 'raw', reduceSingleLeafToSelf: false })
  } else if (links != null) {
    options.layout = balanced({ maxChildrenPerNode: most })
  }
  for (const name of ['rawLeaves', 'cidVersion']) {
    if (question[name] != null) {
      options[name] = question[name]
    }
  }
  if (question.directoryBytes != null) {
    options.shardSplitThresholdBytes = question.directoryBytes
  }
  if (question.fanoutBits != null) {
    options.shardFanoutBits = question.fanoutBits
  }
  return options
}

const nowhere = { put: async cid => cid }

for await (const line of readline.createInterface({ input: process.stdin })) {
  const question = JSON.parse(line)
  const { path: from, names, text, mtime, mode } = question
  const metadata = {}
  if (mtime != null) {
    metadata.mtime = { secs: BigInt(mtime) }
  }
  if (mode != null) {
    metadata.mode = mode
  }
  const source = names != null ? listed(names, text) : walk(from, ROOT, metadata)
  let root
  for await (const entry of importer(source, nowhere, optionsOf(question))) {
    root = entry
  }
  if (root.path !== ROOT) {
    throw new Error(`the last entry of ${from} is ${root.path}, not the root`)
  }
  console.log(JSON.stringify({ cid: root.cid.toString() }))
}
