import { execFile } from 'node:child_process'
import { appendFile, mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { newRunDir } from './cache.ts'
import { sql, startPostgres, type PostgresServer } from './postgres.ts'
import { removeAtExit } from './processes.ts'

const run = promisify(execFile)

/** A hot standby of `primary` through the physical slot `standby`, made by copying its files while it runs; logical slots made for failover come along.
 *  Version 17 or later. */
export async function startStandby(primary: PostgresServer): Promise<PostgresServer> {
  const dir = await newRunDir('standby')
  removeAtExit(dir)
  const data = join(dir, 'data')
  await run('chmod', ['755', dir])
  await sql(primary.adminUrl, `select pg_create_physical_replication_slot('standby', true)`)
  const backup = new pg.Client({ connectionString: primary.adminUrl })
  await backup.connect()
  await backup.query(`select pg_backup_start('standby', true)`)
  // Files may vanish while they are copied; what counts of them is in the log.
  await run('cp', ['-a', primary.dataDir, data]).catch(() => {})
  const { rows } = await backup.query<{ labelfile: string }>('select labelfile from pg_backup_stop(false)')
  await backup.end()
  await rm(join(data, 'pg_wal'), { recursive: true })
  await mkdir(join(data, 'pg_wal', 'archive_status'), { recursive: true })
  for (const path of ['postmaster.pid', 'pg_replslot']) await rm(join(data, path), { recursive: true, force: true })
  await mkdir(join(data, 'pg_replslot'))
  await writeFile(join(data, 'backup_label'), rows[0]?.labelfile ?? '')
  await writeFile(join(data, 'standby.signal'), '')
  await appendFile(
    join(data, 'postgresql.auto.conf'),
    `\nprimary_conninfo = 'host=127.0.0.1 port=${primary.port} user=postgres dbname=postgres application_name=standby'
primary_slot_name = 'standby'\nhot_standby_feedback = on\nsync_replication_slots = on\n
synchronous_standby_names = ''\nsynchronized_standby_slots = ''\nwal_receiver_status_interval = 1s\n`,
  )
  return await startPostgres({ version: primary.version, dataDir: data })
}
