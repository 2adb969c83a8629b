/*
 * pgh_rewind: a leased database back to its baseline, page by page.
 *
 * The lease and the baseline are copies of the same template, made file by file, so they have the same files under the
 * same numbers.  The log names every page of the lease that was written since.  These pages are copied from the
 * baseline's, through shared buffers, under content locks, and logged; what grew is truncated, what was dropped is made
 * again, what is new is dropped.  Called in the maintenance database, never in the lease.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/htup_details.h"
#include "access/rmgr.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "catalog/pg_control.h"
#include "catalog/pg_tablespace_d.h"
#include "catalog/pg_type.h"
#include "catalog/storage.h"
#include "catalog/storage_xlog.h"
#include "common/relpath.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/md.h"
#include "storage/proc.h"
#include "storage/sinval.h"
#include "storage/smgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/relmapper.h"

PG_MODULE_MAGIC;

#if PG_VERSION_NUM < 160000
typedef RelFileNode Locator;
#define LOC(spc, db, rel) ((RelFileNode) {(spc), (db), (rel)})
#define SPC(l) ((l).spcNode)
#define DB(l) ((l).dbNode)
#define REL(l) ((l).relNode)
#define LOCATORS(parsed) ((parsed).xnodes)
#define OPEN(l) smgropen((l), InvalidBackendId)
typedef Oid RelNumber;
#define PGIOAlignedBlock PGAlignedBlock
#else
typedef RelFileLocator Locator;
#define LOC(spc, db, rel) ((RelFileLocator) {(spc), (db), (rel)})
#define SPC(l) ((l).spcOid)
#define DB(l) ((l).dbOid)
#define REL(l) ((l).relNumber)
#define LOCATORS(parsed) ((parsed).xlocators)
#if PG_VERSION_NUM < 170000
#define OPEN(l) smgropen((l), InvalidBackendId)
#else
#define OPEN(l) smgropen((l), INVALID_PROC_NUMBER)
#endif
typedef RelFileNumber RelNumber;
#endif

#if PG_VERSION_NUM < 170000
#define LXID(proc) ((proc)->lxid)
#else
#define LXID(proc) ((proc)->vxid.lxid)
#endif

#define FIRST_USER_OID 16384

/* --- what is known of a baseline: made by pgh_rewind_know, kept for the session ----------------------------------- */

typedef struct Known
{
	RelNumber	node;			/* key: the number of its files, in the baseline and in the lease */
	Oid			oid;			/* for locks and messages */
	Oid			table;			/* the table whose heap, index, TOAST it is */
	char		kind;			/* pg_class.relkind */
	bool		unlogged;
} Known;

typedef struct Family
{
	Oid			table;			/* key */
	List	   *nodes;			/* numbers of all of its files: heap, indexes, TOAST, its index */
} Family;

static Oid	known_baseline = InvalidOid;
static MemoryContext known_context = NULL;
static HTAB *known_files = NULL;
static HTAB *known_tables = NULL;
static List *known_unlogged = NIL;

/* --- what was written, by one reading of the log ------------------------------------------------------------------ */

#define MOST_BLOCKS 64			/* of one fork that are noted singly; beyond, all of it is compared */

typedef struct
{
	RelNumber	node;
	ForkNumber	fork;
} FileKey;

typedef struct Dirty
{
	FileKey		key;
	int			count;			/* of blocks; MOST_BLOCKS + 1: all */
	BlockNumber blocks[MOST_BLOCKS];
} Dirty;

typedef struct Seen
{
	HTAB	   *files;			/* of Dirty */
	bool		catalogs;		/* a catalog of the lease was written */
	bool		shared;			/* a catalog of the whole server was written */
	bool		dropped;		/* files were dropped */
	const char *refused;		/* why pages are not enough */
	int64		records;
} Seen;

typedef struct Done
{
	int64		relations,
				compared,
				written,
				truncated,
				made,
				dropped;
} Done;

PG_FUNCTION_INFO_V1(pgh_rewind_know);
PG_FUNCTION_INFO_V1(pgh_rewind);

/*
 * pgh_rewind_know(baseline oid, nodes oid[], oids oid[], tables oid[], kinds text, unlogged oid[]) returns void
 */
Datum
pgh_rewind_know(PG_FUNCTION_ARGS)
{
	Oid			baseline = PG_GETARG_OID(0);
	Datum	   *nodes,
			   *oids,
			   *tables,
			   *unlogged;
	char	   *kinds = text_to_cstring(PG_GETARG_TEXT_PP(4));
	int			n,
				m,
				k,
				u;
	HASHCTL		ctl = {0};
	MemoryContext old;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), OIDOID, sizeof(Oid), true, TYPALIGN_INT, &nodes, NULL, &n);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), OIDOID, sizeof(Oid), true, TYPALIGN_INT, &oids, NULL, &m);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(3), OIDOID, sizeof(Oid), true, TYPALIGN_INT, &tables, NULL, &k);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(5), OIDOID, sizeof(Oid), true, TYPALIGN_INT, &unlogged, NULL, &u);
	if (n != m || n != k || n != (int) strlen(kinds))
		ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("arrays of different lengths"));

	known_baseline = InvalidOid;
	if (known_context != NULL)
		MemoryContextDelete(known_context);
	known_context = AllocSetContextCreate(TopMemoryContext, "pgh_rewind", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(known_context);
	ctl.hcxt = known_context;
	ctl.keysize = sizeof(RelNumber);
	ctl.entrysize = sizeof(Known);
	known_files = hash_create("pgh_rewind files", n, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Family);
	known_tables = hash_create("pgh_rewind tables", n, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	known_unlogged = NIL;
	for (int i = 0; i < n; i++)
	{
		RelNumber	node = DatumGetObjectId(nodes[i]);
		Oid			table = DatumGetObjectId(tables[i]);
		bool		found;
		Known	   *known = hash_search(known_files, &node, HASH_ENTER, NULL);
		Family	   *family = hash_search(known_tables, &table, HASH_ENTER, &found);

		known->oid = DatumGetObjectId(oids[i]);
		known->table = table;
		known->kind = kinds[i];
		known->unlogged = false;
		if (!found)
			family->nodes = NIL;
		family->nodes = lappend_oid(family->nodes, node);
	}
	for (int i = 0; i < u; i++)
	{
		RelNumber	node = DatumGetObjectId(unlogged[i]);
		Known	   *known = hash_search(known_files, &node, HASH_FIND, NULL);

		if (known != NULL)
		{
			known->unlogged = true;
			known_unlogged = lappend_oid(known_unlogged, node);
		}
	}
	MemoryContextSwitchTo(old);
	known_baseline = baseline;
	PG_RETURN_VOID();
}

/* --- reading the log ---------------------------------------------------------------------------------------------- */

static void
note_block(Seen *seen, RelNumber node, ForkNumber fork, BlockNumber block)
{
	FileKey		key;
	Dirty	   *dirty;
	bool		found;

	memset(&key, 0, sizeof key);	/* padding is hashed too */
	key.node = node;
	key.fork = fork;
	dirty = hash_search(seen->files, &key, HASH_ENTER, &found);
	if (!found)
		dirty->count = 0;
	if (block == InvalidBlockNumber)
	{
		dirty->count = MOST_BLOCKS + 1;
		return;
	}
	for (int i = 0; i < Min(dirty->count, MOST_BLOCKS); i++)
		if (dirty->blocks[i] == block)
			return;
	if (dirty->count < MOST_BLOCKS)
		dirty->blocks[dirty->count++] = block;
	else
		dirty->count = MOST_BLOCKS + 1;
}

static void
note_record(Seen *seen, XLogReaderState *reader, Oid lease)
{
	RmgrId		rmid = XLogRecGetRmid(reader);
	uint8		info = XLogRecGetInfo(reader) & ~XLR_INFO_MASK;

	for (int i = 0; i <= XLogRecMaxBlockId(reader); i++)
	{
		Locator		at;
		ForkNumber	fork;
		BlockNumber block;

		if (!XLogRecGetBlockTagExtended(reader, i, &at, &fork, &block, NULL))
			continue;
		if (SPC(at) == GLOBALTABLESPACE_OID)
		{
			seen->shared = true;
			continue;
		}
		if (DB(at) != lease)
			continue;
		if (SPC(at) != DEFAULTTABLESPACE_OID)
			seen->refused = "a tablespace was written";
		note_block(seen, REL(at), fork, block);
	}
	switch (rmid)
	{
		case RM_SMGR_ID:
			if (info == XLOG_SMGR_CREATE)
			{
				xl_smgr_create *rec = (xl_smgr_create *) XLogRecGetData(reader);
#if PG_VERSION_NUM < 160000
				Locator		at = rec->rnode;
#else
				Locator		at = rec->rlocator;
#endif
				if (DB(at) == lease)
					note_block(seen, REL(at), rec->forkNum, InvalidBlockNumber);
			}
			else if (info == XLOG_SMGR_TRUNCATE)
			{
				xl_smgr_truncate *rec = (xl_smgr_truncate *) XLogRecGetData(reader);
#if PG_VERSION_NUM < 160000
				Locator		at = rec->rnode;
#else
				Locator		at = rec->rlocator;
#endif
				if (DB(at) == lease)
					for (ForkNumber fork = MAIN_FORKNUM; fork <= VISIBILITYMAP_FORKNUM; fork++)
						note_block(seen, REL(at), fork, InvalidBlockNumber);
			}
			break;
		case RM_XACT_ID:
			{
				uint8		kind = info & XLOG_XACT_OPMASK;
				Locator    *gone = NULL;
				int			n = 0;

				if (kind == XLOG_XACT_COMMIT || kind == XLOG_XACT_COMMIT_PREPARED)
				{
					xl_xact_parsed_commit parsed;

					ParseCommitRecord(XLogRecGetInfo(reader), (xl_xact_commit *) XLogRecGetData(reader), &parsed);
					gone = LOCATORS(parsed);
					n = parsed.nrels;
				}
				else if (kind == XLOG_XACT_ABORT || kind == XLOG_XACT_ABORT_PREPARED)
				{
					xl_xact_parsed_abort parsed;

					ParseAbortRecord(XLogRecGetInfo(reader), (xl_xact_abort *) XLogRecGetData(reader), &parsed);
					gone = LOCATORS(parsed);
					n = parsed.nrels;
				}
				for (int i = 0; i < n; i++)
					if (DB(gone[i]) == lease)
					{
						seen->dropped = true;
						for (ForkNumber fork = MAIN_FORKNUM; fork <= VISIBILITYMAP_FORKNUM; fork++)
							note_block(seen, REL(gone[i]), fork, InvalidBlockNumber);
					}
			}
			break;
		case RM_RELMAP_ID:
			{
				xl_relmap_update *rec = (xl_relmap_update *) XLogRecGetData(reader);

				if (rec->dbid == lease)
					seen->refused = "the map of catalogs' files was written";
			}
			break;
		case RM_DBASE_ID:
			break;
		default:
			break;
	}
}

/* Read from one record boundary to another; what our own transactions wrote is left out. */
static void
read_log(Seen *seen, XLogRecPtr from, XLogRecPtr until, Oid lease, const Datum *own, int nown)
{
	ReadLocalXLogPageNoWaitPrivate *private = palloc0(sizeof *private);
	XLogReaderState *reader;
	char	   *error;

	reader = XLogReaderAllocate(wal_segment_size, NULL,
								XL_ROUTINE(.page_read = &read_local_xlog_page_no_wait,
										   .segment_open = &wal_segment_open,
										   .segment_close = &wal_segment_close),
								private);
	if (reader == NULL)
		ereport(ERROR, errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory"));
	/* A position at the begin of a page lies before its header. */
	if (XLogSegmentOffset(from, wal_segment_size) == 0)
		from += SizeOfXLogLongPHD;
	else if (from % XLOG_BLCKSZ == 0)
		from += SizeOfXLogShortPHD;
	XLogBeginRead(reader, from);
	while (reader->EndRecPtr < until)
	{
		XLogRecord *record = XLogReadRecord(reader, &error);
		bool		ours = false;

		if (record == NULL)
		{
			seen->refused = error ? pstrdup(error) : "the log ends early";
			break;
		}
		seen->records++;
		for (int i = 0; i < nown && !ours; i++)
			ours = DatumGetTransactionId(own[i]) == XLogRecGetXid(reader) && TransactionIdIsValid(XLogRecGetXid(reader));
		if (!ours)
			note_record(seen, reader, lease);
		CHECK_FOR_INTERRUPTS();
	}
	XLogReaderFree(reader);
}

/* --- who is there ------------------------------------------------------------------------------------------------- */

static List *
busy_in(Oid lease, const Datum *ours, int nours, bool *prepared)
{
	List	   *pids = NIL;
	int			all = ProcGlobal->allProcCount + max_prepared_xacts;

	*prepared = false;
	LWLockAcquire(ProcArrayLock, LW_SHARED);
	for (int i = 0; i < all; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		bool		skip = false;

		if (proc->databaseId != lease)
			continue;
		if (proc->pid == 0)
		{
			*prepared |= TransactionIdIsValid(proc->xid);
			continue;
		}
		for (int j = 0; j < nours && !skip; j++)
			skip = DatumGetInt32(ours[j]) == proc->pid;
		if (!skip && (TransactionIdIsValid(proc->xid) || TransactionIdIsValid(proc->xmin) ||
					  LocalTransactionIdIsValid(LXID(proc))))
			pids = lappend_int(pids, proc->pid);
	}
	LWLockRelease(ProcArrayLock);
	return pids;
}

/* --- pages -------------------------------------------------------------------------------------------------------- */

static void
shorten(SMgrRelation to, Locator at, ForkNumber fork, BlockNumber have, BlockNumber want, Done *done)
{
	xl_smgr_truncate rec;

	rec.blkno = want;
#if PG_VERSION_NUM < 160000
	rec.rnode = at;
#else
	rec.rlocator = at;
#endif
	rec.flags = fork == MAIN_FORKNUM ? SMGR_TRUNCATE_HEAP :
		fork == VISIBILITYMAP_FORKNUM ? SMGR_TRUNCATE_VM : SMGR_TRUNCATE_FSM;
	/* As RelationTruncate does: no checkpoint between the record and the files. */
	MyProc->delayChkptFlags |= DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE;
	XLogBeginInsert();
	XLogRegisterData((char *) &rec, sizeof rec);
	XLogFlush(XLogInsert(RM_SMGR_ID, XLOG_SMGR_TRUNCATE | XLR_SPECIAL_REL_UPDATE));
#if PG_VERSION_NUM >= 180000
	smgrtruncate(to, &fork, 1, &have, &want);
#else
	smgrtruncate(to, &fork, 1, &want);
#endif
	MyProc->delayChkptFlags &= ~(DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE);
	done->truncated++;
}

static void
put_back(Locator from, Locator at, ForkNumber fork, BlockNumber block, bool logged, Done *done)
{
	/* Behind the LSN and the checksum: they are the log's and the file's, not the content's. */
	const size_t head = offsetof(PageHeaderData, pd_flags);
	Buffer		source = ReadBufferWithoutRelcache(from, fork, block, RBM_NORMAL, NULL, true);
	Buffer		target = ReadBufferWithoutRelcache(at, fork, block, RBM_NORMAL, NULL, logged);
	Page		is,
				wanted;

	LockBuffer(source, BUFFER_LOCK_SHARE);
	LockBuffer(target, BUFFER_LOCK_EXCLUSIVE);
	is = BufferGetPage(target);
	wanted = BufferGetPage(source);
	done->compared++;
	if (memcmp((char *) is + head, (char *) wanted + head, BLCKSZ - head) != 0)
	{
		START_CRIT_SECTION();
		memcpy((char *) is + head, (char *) wanted + head, BLCKSZ - head);
		MarkBufferDirty(target);
		if (logged)
			/* Only heaps and indexes have the standard layout, a free space map has none. */
			log_newpage_buffer(target, fork == MAIN_FORKNUM);
		END_CRIT_SECTION();
		done->written++;
	}
	UnlockReleaseBuffer(target);
	UnlockReleaseBuffer(source);
}

static void
restore_fork(Oid baseline, Oid lease, Known *known, ForkNumber fork, const Dirty *dirty, Done *done)
{
	Locator		from = LOC(DEFAULTTABLESPACE_OID, baseline, known->node),
				at = LOC(DEFAULTTABLESPACE_OID, lease, known->node);
	SMgrRelation source = OPEN(from),
				target = OPEN(at);
	bool		logged = !known->unlogged || fork == INIT_FORKNUM;
	BlockNumber want,
				have;

	if (!smgrexists(source, fork))
	{
		/* A fork that the test made: emptied; its file stays, and nobody reads it. */
		if (smgrexists(target, fork) && (have = smgrnblocks(target, fork)) > 0)
			shorten(target, at, fork, have, 0, done);
		return;
	}
	want = smgrnblocks(source, fork);
	if (!smgrexists(target, fork))
	{
		smgrcreate(target, fork, true);
		if (logged)
			log_smgrcreate(&at, fork);
		done->made++;
	}
	have = smgrnblocks(target, fork);
	if (have > want)
		shorten(target, at, fork, have, want, done);
	for (; have < want; have++)
	{
		PGIOAlignedBlock zeros;

		memset(zeros.data, 0, BLCKSZ);
		smgrextend(target, fork, have, zeros.data, true);
		put_back(from, at, fork, have, logged, done);
	}
	if (dirty == NULL || dirty->count > MOST_BLOCKS)
		for (BlockNumber block = 0; block < want; block++)
			put_back(from, at, fork, block, logged, done);
	else
		for (int i = 0; i < dirty->count; i++)
			if (dirty->blocks[i] < want)
				put_back(from, at, fork, dirty->blocks[i], logged, done);
}

/* --- one rewind --------------------------------------------------------------------------------------------------- */

/* Lock every relation that was written, and what lies beside it; false where one is not to be had now. */
static bool
lock_all(List *oids, Oid lease)
{
	ListCell   *cell;

	/* In OID order, so that two rewinds and a reset by rows cannot deadlock. */
	list_sort(oids, list_oid_cmp);
	foreach(cell, oids)
	{
		LOCKTAG		tag;

		SET_LOCKTAG_RELATION(tag, lease, lfirst_oid(cell));
		if (LockAcquire(&tag, AccessExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
			return false;
	}
	return true;
}

static void
tell(Oid lease, List *oids, bool everything)
{
	SharedInvalidationMessage msg;
	ListCell   *cell;

	memset(&msg, 0, sizeof msg);
	if (everything)
	{
		/* Rows of catalogs went back: what was cached of any of them is forgotten, plans too. */
		static const Oid catalogs[] = {
#define CATALOG_LIST
#include "catalogs.h"
		};

		for (int i = 0; i < (int) lengthof(catalogs); i++)
		{
			msg.cat.id = SHAREDINVALCATALOG_ID;
			msg.cat.dbId = lease;
			msg.cat.catId = catalogs[i];
			SendSharedInvalidMessages(&msg, 1);
		}
		memset(&msg, 0, sizeof msg);
		msg.rc.id = SHAREDINVALRELCACHE_ID;
		msg.rc.dbId = lease;
		msg.rc.relId = InvalidOid;
		SendSharedInvalidMessages(&msg, 1);
		return;
	}
	foreach(cell, oids)
	{
		msg.rc.id = SHAREDINVALRELCACHE_ID;
		msg.rc.dbId = lease;
		msg.rc.relId = lfirst_oid(cell);
		SendSharedInvalidMessages(&msg, 1);
	}
}

/*
 * pgh_rewind(lease oid, baseline oid, since pg_lsn, own xid-as-oid[], ours int[], most int)
 *   returns (status text, upto pg_lsn, xid oid, busy int[], prepared bool, shared bool,
 *            relations int8, compared int8, written int8, truncated int8, made int8, dropped int8)
 *
 * status: nothing | rewound | busy (sessions or a prepared transaction are in the way) | locked | why not.
 */
Datum
pgh_rewind(PG_FUNCTION_ARGS)
{
	Oid			lease = PG_GETARG_OID(0),
				baseline = PG_GETARG_OID(1);
	XLogRecPtr	since = PG_GETARG_LSN(2),
				upto;
	Datum	   *own,
			   *ours,
				values[12];
	bool		nulls[12] = {0};
	int			nown,
				nours;
	Seen		seen = {0};
	Done		done = {0};
	HASHCTL		ctl = {0};
	HASH_SEQ_STATUS scan;
	Dirty	   *dirty;
	List	   *busy = NIL,
			   *nodes = NIL,
			   *oids = NIL,
			   *fresh = NIL;
	ListCell   *cell;
	TransactionId xid = InvalidTransactionId;
	bool		prepared = false;
	const char *status = NULL;
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(3), OIDOID, sizeof(Oid), true, TYPALIGN_INT, &own, NULL, &nown);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(4), INT4OID, sizeof(int32), true, TYPALIGN_INT, &ours, NULL, &nours);
	if (baseline != known_baseline)
		ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("this session does not know the files of baseline %u", baseline));
	if (lease == MyDatabaseId || baseline == MyDatabaseId)
		ereport(ERROR, errcode(ERRCODE_OBJECT_IN_USE), errmsg("call it in another database"));

	upto = GetXLogInsertRecPtr();
	if (upto == since && known_unlogged == NIL)
	{
		status = "nothing";
		goto answer;
	}

	/* A message of our own: its end is a place to read to, and to go on from. */
#if PG_VERSION_NUM < 170000
	upto = LogLogicalMessage("pgh", "", 0, false);
#else
	upto = LogLogicalMessage("pgh", "", 0, false, false);
#endif
	XLogFlush(upto);
	ctl.keysize = sizeof(FileKey);
	ctl.entrysize = sizeof(Dirty);
	ctl.hcxt = CurrentMemoryContext;
	seen.files = hash_create("pgh_rewind seen", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	read_log(&seen, since, upto, lease, own, nown);
	if (seen.refused)
	{
		status = seen.refused;
		goto answer;
	}

	busy = busy_in(lease, ours, nours, &prepared);
	if (busy != NIL || prepared)
	{
		status = "busy";
		goto answer;
	}

	foreach(cell, known_unlogged)
		for (ForkNumber fork = MAIN_FORKNUM; fork <= VISIBILITYMAP_FORKNUM; fork++)
			note_block(&seen, lfirst_oid(cell), fork, InvalidBlockNumber);

	/* Which files: those that were written, and of a heap that was, its indexes, whose hints are not in the log. */
	hash_seq_init(&scan, seen.files);
	while ((dirty = hash_seq_search(&scan)) != NULL)
	{
		Known	   *known = hash_search(known_files, &dirty->key.node, HASH_FIND, NULL);

		if (known == NULL)
		{
			fresh = list_append_unique_oid(fresh, dirty->key.node);
			continue;
		}
		seen.catalogs |= known->oid < FIRST_USER_OID;
		if (known->kind == 'S')
			nodes = list_append_unique_oid(nodes, known->node);
		else
		{
			Family	   *family = hash_search(known_tables, &known->table, HASH_FIND, NULL);

			nodes = list_concat_unique_oid(nodes, family->nodes);
		}
	}
	if (nodes == NIL && fresh == NIL)
	{
		status = "nothing";
		goto answer;
	}
	foreach(cell, nodes)
	{
		RelNumber	node = lfirst_oid(cell);
		Known	   *known = hash_search(known_files, &node, HASH_FIND, NULL);

		oids = lappend_oid(oids, known->oid);
	}
	if (!lock_all(oids, lease))
	{
		status = "locked";
		goto answer;
	}
	/* Whoever came between the reading and the locks. */
	busy = busy_in(lease, ours, nours, &prepared);
	if (busy != NIL || prepared)
	{
		status = "busy";
		goto answer;
	}
	{
		XLogRecPtr	later = GetXLogInsertRecPtr();

		if (later != upto)
		{
			Seen		more = {0};

			more.files = hash_create("pgh_rewind more", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
#if PG_VERSION_NUM < 170000
			later = LogLogicalMessage("pgh", "", 0, false);
#else
			later = LogLogicalMessage("pgh", "", 0, false, false);
#endif
			XLogFlush(later);
			read_log(&more, upto, later, lease, own, nown);
			if (more.refused || hash_get_num_entries(more.files) > 0)
			{
				status = "busy";
				goto answer;
			}
			upto = later;
		}
	}

	/* From here on the records are ours, by their transaction. */
	xid = GetTopTransactionId();

	if (seen.dropped)
		/* What a test dropped is unlinked by the next checkpoint: not the files that are made again under that name. */
		ForgetDatabaseSyncRequests(lease);
	foreach(cell, nodes)
	{
		RelNumber	node = lfirst_oid(cell);
		Known	   *known = hash_search(known_files, &node, HASH_FIND, NULL);
		bool		whole = known->kind == 'i';

		for (ForkNumber fork = MAIN_FORKNUM; fork <= INIT_FORKNUM; fork++)
		{
			FileKey		key;
			bool		found;

			memset(&key, 0, sizeof key);
			key.node = node;
			key.fork = fork;
			dirty = hash_search(seen.files, &key, HASH_FIND, &found);
			if (found || (whole && fork == MAIN_FORKNUM) || fork == FSM_FORKNUM)
				restore_fork(baseline, lease, known, fork, found && !whole && fork != FSM_FORKNUM ? dirty : NULL, &done);
		}
		done.relations++;
	}
	foreach(cell, fresh)
	{
		Locator		at = LOC(DEFAULTTABLESPACE_OID, lease, lfirst_oid(cell));

		if (smgrexists(OPEN(at), MAIN_FORKNUM))
		{
			Relation	rel = CreateFakeRelcacheEntry(at);

#if PG_VERSION_NUM < 160000
			rel->rd_rel->relpersistence = RELPERSISTENCE_PERMANENT;
#endif
			/* With the COMMIT, which logs it. */
			RelationDropStorage(rel);
			FreeFakeRelcacheEntry(rel);
			done.dropped++;
		}
	}
	if (seen.catalogs)
	{
		char	   *path = GetDatabasePath(lease, DEFAULTTABLESPACE_OID);

		/* Descriptions of catalogs that new sessions read instead of the catalogs. */
		(void) unlink(psprintf("%s/%s", path, RELCACHE_INIT_FILENAME));
	}
	tell(lease, oids, seen.catalogs);
	status = "rewound";

answer:
	memset(values, 0, sizeof values);
	values[0] = CStringGetTextDatum(status);
	values[1] = LSNGetDatum(upto);
	values[2] = TransactionIdGetDatum(xid);
	{
		Datum	   *pids = palloc(sizeof(Datum) * (list_length(busy) + 1));
		int			n = 0;

		foreach(cell, busy)
			pids[n++] = Int32GetDatum(lfirst_int(cell));
		values[3] = PointerGetDatum(construct_array(pids, n, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	}
	values[4] = BoolGetDatum(prepared);
	values[5] = BoolGetDatum(seen.shared);
	values[6] = Int64GetDatum(done.relations);
	values[7] = Int64GetDatum(done.compared);
	values[8] = Int64GetDatum(done.written);
	values[9] = Int64GetDatum(done.truncated);
	values[10] = Int64GetDatum(done.made);
	values[11] = Int64GetDatum(done.dropped);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
