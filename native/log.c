/*
 * What was written to a lease: one reading of the write-ahead log, from one record's begin to another's end.
 */
#include "pgh.h"

#include "access/nbtxlog.h"
#include "access/rmgr.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "catalog/pg_control.h"
#include "catalog/pg_tablespace_d.h"
#include "catalog/storage_xlog.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/relmapper.h"

void
seen_begin(Seen *seen)
{
	memset(seen, 0, sizeof *seen);
	seen->files = make_table("pgh dirty", 64, sizeof(RelNumber), sizeof(Dirty), CurrentMemoryContext);
}

Dirty *
seen_file(Seen *seen, RelNumber node)
{
	bool		found;
	Dirty	   *dirty = hash_search(seen->files, &node, HASH_ENTER, &found);

	if (!found)
	{
		dirty->all = dirty->dropped = dirty->unlinked = dirty->unlogged = dirty->btree = dirty->freed = false;
		dirty->inserted = true;
		memset(dirty->blocks, 0, sizeof dirty->blocks);
	}
	return dirty;
}

/* A file of the lease in which something else than a page was changed; NULL where it is not the lease's. */
static Dirty *
whole_file(Seen *seen, Locator at, Oid lease)
{
	Dirty	   *dirty;

	if (DB(at) != lease)
		return NULL;
	if (SPC(at) != DEFAULTTABLESPACE_OID)
	{
		seen->refused = "a tablespace was written";
		return NULL;
	}
	dirty = seen_file(seen, REL(at));
	dirty->all = true;
	return dirty;
}

/* Whether a record of a B-tree leaves all of its pages in use. */
static bool
is_insertion(const LogRecord *record)
{
	if (record->header->xl_rmid != RM_BTREE_ID)
		return false;
	switch (record->header->xl_info & ~XLR_INFO_MASK)
	{
		case XLOG_BTREE_INSERT_LEAF:
		case XLOG_BTREE_INSERT_UPPER:
		case XLOG_BTREE_INSERT_META:
		case XLOG_BTREE_INSERT_POST:
		case XLOG_BTREE_SPLIT_L:
		case XLOG_BTREE_SPLIT_R:
		case XLOG_BTREE_NEWROOT:
		case XLOG_BTREE_DEDUP:
		case XLOG_BTREE_DELETE:
			return true;
		default:
			return false;
	}
}

static void
note_blocks(Seen *seen, const LogRecord *record, Oid lease)
{
	bool		inserts = is_insertion(record);
	bool		is_hint = record->header->xl_rmid == RM_XLOG_ID &&
	(record->header->xl_info & ~XLR_INFO_MASK) == XLOG_FPI_FOR_HINT;

	for (int i = 0; i < record->nblocks; i++)
	{
		Locator		at = record->blocks[i].at;
		ForkNumber	fork = record->blocks[i].fork;
		BlockNumber block = record->blocks[i].block;
		Dirty	   *dirty;

		if (SPC(at) == GLOBALTABLESPACE_OID)
		{
			List	  **list = is_of_owners(REL(at)) ? &seen->owners : &seen->shared;

			*list = list_append_unique_oid(*list, record->header->xl_xid);
		}
		if (DB(at) == known_baseline && !is_hint)
			seen->refused = "the baseline was written";
		if (DB(at) != lease)
			continue;
		if (SPC(at) != DEFAULTTABLESPACE_OID)
		{
			seen->refused = "a tablespace was written";
			continue;
		}
		/* Records of one table and its indexes come one after the other. */
		dirty = seen->recent[REL(at) % lengthof(seen->recent)];
		if (dirty == NULL || dirty->node != REL(at))
			dirty = seen->recent[REL(at) % lengthof(seen->recent)] = seen_file(seen, REL(at));
		dirty->inserted &= inserts;
		dirty->freed |= record->header->xl_rmid == RM_BTREE_ID && !inserts;
		/* A block number is unsigned, a member of a set is not. */
		if (block > (BlockNumber) PG_INT32_MAX)
			dirty->all = true;
		else if (dirty->newest[fork] != block || dirty->blocks[fork] == NULL)
		{
			dirty->blocks[fork] = bms_add_member(dirty->blocks[fork], (int) block);
			dirty->newest[fork] = block;
		}
	}
}

static void
note_transaction(Seen *seen, const LogRecord *record, Oid lease)
{
	uint8		info = record->header->xl_info;
	Locator    *gone = NULL;
	int			n = 0;

	switch (info & XLOG_XACT_OPMASK)
	{
		case XLOG_XACT_COMMIT:
		case XLOG_XACT_COMMIT_PREPARED:
			{
				xl_xact_parsed_commit parsed;

				ParseCommitRecord(info, (xl_xact_commit *) record->data, &parsed);
				gone = PARSED_LOCATORS(parsed);
				n = parsed.nrels;
				break;
			}
		case XLOG_XACT_ABORT:
		case XLOG_XACT_ABORT_PREPARED:
			{
				xl_xact_parsed_abort parsed;

				ParseAbortRecord(info, (xl_xact_abort *) record->data, &parsed);
				gone = PARSED_LOCATORS(parsed);
				n = parsed.nrels;
				break;
			}
		default:
			break;
	}
	for (int i = 0; i < n; i++)
	{
		Dirty	   *dirty = whole_file(seen, gone[i], lease);

		if (dirty != NULL)
			dirty->dropped = dirty->unlinked = true;
	}
}

static void
note_record(Seen *seen, const LogRecord *record, Oid lease)
{
	uint8		info = record->header->xl_info & ~XLR_INFO_MASK;
	const char *data = record->data;

	note_blocks(seen, record, lease);
	switch (record->header->xl_rmid)
	{
		case RM_SMGR_ID:
			if (info == XLOG_SMGR_CREATE)
			{
				Dirty	   *dirty = whole_file(seen, RECORD_LOCATOR((const xl_smgr_create *) data), lease);

				if (dirty != NULL && ((const xl_smgr_create *) data)->forkNum == INIT_FORKNUM)
					dirty->unlogged = true;
			}
			else if (info == XLOG_SMGR_TRUNCATE)
				whole_file(seen, RECORD_LOCATOR((const xl_smgr_truncate *) data), lease);
			break;
		case RM_XACT_ID:
			note_transaction(seen, record, lease);
			break;
		case RM_RELMAP_ID:
			if (((const xl_relmap_update *) data)->dbid == lease)
				seen->refused = "the map of catalogs' files was written";
			break;
		default:
			break;
	}
}

/* What the reading of one window is about. */
typedef struct Reading
{
	Seen	   *seen;
	Oid			lease;
	const Datum *own;
	int			nown;
} Reading;

static void
note_foreign(const LogRecord *record, void *argument)
{
	Reading    *reading = argument;
	TransactionId xid = record->header->xl_xid;

	for (int i = 0; i < reading->nown; i++)
		if (TransactionIdIsValid(xid) && DatumGetTransactionId(reading->own[i]) == xid)
			return;
	note_record(reading->seen, record, reading->lease);
}

/* Read the records from .. until; those of our own transactions are left out. */
void
read_log(Seen *seen, XLogRecPtr from, XLogRecPtr until, Oid lease, const Datum *own, int nown)
{
	Reading		reading = {seen, lease, own, nown};
	const char *problem = each_record(from, until, note_foreign, &reading);

	if (problem != NULL)
		seen->refused = problem;
}
