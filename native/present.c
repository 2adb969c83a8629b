/*
 * Who is in the way of a rewind.  Everything here only looks.
 */
#include "pgh.h"

#include <dirent.h>

#include "access/transam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_tablespace_d.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"

bool
is_ours(int pid, const Datum *ours, int nours)
{
	for (int i = 0; i < nours; i++)
		if (DatumGetInt32(ours[i]) == pid)
			return true;
	return false;
}

/* Transactions with an id or a snapshot, and sessions in the middle of a statement. */
Present
look_around(Oid lease, const Datum *ours, int nours)
{
	Present		found = {0};
	List	   *ids = NIL;
	ListCell   *cell;
	int			procs = ProcGlobal->allProcCount + max_prepared_xacts,
				sessions;

	LWLockAcquire(ProcArrayLock, LW_SHARED);
	for (int i = 0; i < procs; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];

		if (proc->databaseId != lease)
			continue;
		if (proc->pid == 0)
		{
			/* Of a prepared transaction, or of one that has ended: nobody tidies it up. */
			if (TransactionIdIsValid(proc->xid))
				ids = lappend_oid(ids, proc->xid);
			continue;
		}
		if (is_ours(proc->pid, ours, nours))
			continue;
		if (TransactionIdIsValid(proc->xid) || TransactionIdIsValid(proc->xmin))
			found.busy = lappend_int(found.busy, proc->pid);
		if (OidIsValid(proc->tempNamespaceId))
			found.temporary = lappend_oid(found.temporary, proc->tempNamespaceId);
	}
	LWLockRelease(ProcArrayLock);
	foreach(cell, ids)
		found.prepared |= TransactionIdIsInProgress((TransactionId) lfirst_oid(cell));

	/*
	 * A statement may run without a snapshot: the files of what a COMMIT drops are unlinked after the transaction has left
	 * the list above, and after its locks are gone.
	 */
	pgstat_clear_backend_activity_snapshot();
	sessions = pgstat_fetch_stat_numbackends();
	for (int i = 1; i <= sessions; i++)
	{
		PgBackendStatus *status = &STATUS_OF(i)->backendStatus;

		if (status->st_databaseid == lease && !is_ours(status->st_procpid, ours, nours) &&
			status->st_backendType == B_BACKEND &&
			(status->st_state == STATE_RUNNING || status->st_state == STATE_FASTPATH))
			found.busy = list_append_unique_int(found.busy, status->st_procpid);
	}
	return found;
}

/* As harness.postgres.activity.advisory says them. */
ArrayType *
advisory_locks(Oid lease, const Datum *ours, int nours)
{
	LockData   *all = GetLockStatusData();
	Datum	   *texts = palloc(sizeof(Datum) * 16);
	int			n = 0,
				room = 16;

	for (int i = 0; i < all->nelements; i++)
	{
		LockInstanceData *lock = &all->locks[i];

		if (lock->locktag.locktag_type != LOCKTAG_ADVISORY || lock->locktag.locktag_field1 != lease ||
			is_ours(lock->pid, ours, nours))
			continue;
		for (LOCKMODE mode = 1; mode <= MaxLockMode; mode++)
		{
			if (!(lock->holdMask & LOCKBIT_ON(mode)))
				continue;
			if (n == room)
				texts = repalloc(texts, sizeof(Datum) * (room *= 2));
			texts[n++] = CStringGetTextDatum(psprintf("%d:%u,%u,%u,%s", lock->pid, lock->locktag.locktag_field2,
													  lock->locktag.locktag_field3, lock->locktag.locktag_field4,
													  GetLockmodeName(lock->locktag.locktag_lockmethodid, mode)));
		}
	}
	return construct_array(texts, n, TEXTOID, -1, false, TYPALIGN_INT);
}

/* Why pages cannot be put back on this server as it is now; NULL where they can. */
const char *
cannot_rewind(Oid lease)
{
	int			slots,
				active;

	if (enableFsync)
		return "fsync is on";	/* see forget_unlinks */
	/* A decoder or a standby's sessions would know the old catalogs: nothing of ours tells them. */
	if (max_replication_slots > 0 && ReplicationSlotsCountDBSlots(lease, &slots, &active))
		return "the database has a replication slot";
	for (int i = 0; i < max_wal_senders; i++)
		if (WalSndCtl->walsnds[i].pid != 0)
			return "a standby is connected";
	return NULL;
}

/* Whether there is a table, index or sequence that belongs to one session: t<number of the session>_<number of the file>. */
bool
has_temporary_files(Oid lease)
{
	char	   *path = GetDatabasePath(lease, DEFAULTTABLESPACE_OID);
	DIR		   *directory = AllocateDir(path);
	struct dirent *entry;
	bool		found = false;

	while (!found && (entry = ReadDir(directory, path)) != NULL)
		found = entry->d_name[0] == 't' && entry->d_name[1] >= '0' && entry->d_name[1] <= '9';
	FreeDir(directory);
	return found;
}
