/*
 * Who is in the way of a rewind.  Everything here only looks.
 */
#include "pgh.h"

#include "access/transam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lock.h"
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
		/* A worker that reads or vacuums is met by its locks, where it is in the way at all. */
		if (TransactionIdIsValid(proc->xid) ||
			(TransactionIdIsValid(proc->xmin) && !(proc->statusFlags & PROC_IS_AUTOVACUUM)))
			found.busy = lappend_int(found.busy, proc->pid);
		/* Before 18 a session that has ended leaves it behind. */
		if (OidIsValid(proc->tempNamespaceId) && BackendPidGetProcWithLock(proc->pid) == proc)
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

		if (status->st_databaseid != lease || is_ours(status->st_procpid, ours, nours) ||
			(status->st_backendType != B_BACKEND && status->st_backendType != B_BG_WORKER))
			continue;
		found.hidden |= status->st_state == STATE_DISABLED;
		found.activity = found.activity * 31 + (uint64) status->st_procpid * 1000003 + (uint64) status->st_state_start_timestamp;
		if (status->st_state == STATE_IDLEINTRANSACTION || status->st_state == STATE_IDLEINTRANSACTION_ABORTED)
			found.idle = lappend_int(found.idle, status->st_procpid);
		if (status->st_state == STATE_RUNNING || status->st_state == STATE_FASTPATH)
			found.busy = list_append_unique_int(found.busy, status->st_procpid);
	}
	return found;
}

/* Whether a session of the lease has a snapshot, without which none reads; the caller holds ProcArrayLock. */
bool
anybody_reads(Oid lease)
{
	for (int i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];

		if (proc->databaseId == lease && proc->pid != 0 && proc->pid != MyProcPid && TransactionIdIsValid(proc->xmin) &&
			!(proc->statusFlags & PROC_IS_AUTOVACUUM))
			return true;
	}
	return false;
}

static void
add_modes(ArrayBuildState **texts, int pid, const PROCLOCK *held)
{
	const LOCKTAG *tag = &held->tag.myLock->tag;

	for (LOCKMODE mode = 1; mode <= MaxLockMode; mode++)
		if (held->holdMask & LOCKBIT_ON(mode))
			*texts = accumArrayResult(*texts, CStringGetTextDatum(psprintf("%d:%u,%u,%u,%s", pid, tag->locktag_field2,
																		   tag->locktag_field3, tag->locktag_field4,
																		   GetLockmodeName(tag->locktag_lockmethodid, mode))),
									  false, TEXTOID, CurrentMemoryContext);
}

/* As harness.postgres.activity.advisory says them.  Of the lease's sessions only: pg_locks copies the locks of all. */
ArrayType *
advisory_locks(Oid lease, const Datum *ours, int nours)
{
	ArrayBuildState *texts = NULL;
	List	   *procs = NIL;
	ListCell   *cell;

	for (int i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];

		if (proc->databaseId == lease && proc->pid != 0 && !is_ours(proc->pid, ours, nours))
			procs = lappend(procs, proc);
	}
	for (int i = 0; procs != NIL && i < NUM_LOCK_PARTITIONS; i++)
	{
		LWLockAcquire(LockHashPartitionLockByIndex(i), LW_SHARED);
		foreach(cell, procs)
		{
			PGPROC	   *proc = lfirst(cell);
			PROCLOCK   *held;

			for (held = FIRST_LOCK(&proc->myProcLocks[i]); held != NULL; held = NEXT_LOCK(&proc->myProcLocks[i], held))
				if (held->tag.myLock->tag.locktag_type == LOCKTAG_ADVISORY && proc->databaseId == lease)
					add_modes(&texts, proc->pid, held);
		}
		LWLockRelease(LockHashPartitionLockByIndex(i));
	}
	return texts ? DatumGetArrayTypeP(makeArrayResult(texts, CurrentMemoryContext)) : construct_empty_array(TEXTOID);
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
