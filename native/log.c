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
	HASHCTL		ctl = {0};

	memset(seen, 0, sizeof *seen);
	ctl.keysize = sizeof(RelNumber);
	ctl.entrysize = sizeof(Dirty);
	ctl.hcxt = CurrentMemoryContext;
	seen->files = hash_create("pgh dirty", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

Dirty *
seen_file(Seen *seen, RelNumber node)
{
	bool		found;
	Dirty	   *dirty = hash_search(seen->files, &node, HASH_ENTER, &found);

	if (!found)
	{
		dirty->all = dirty->dropped = false;
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
is_insertion(XLogReaderState *reader)
{
	if (XLogRecGetRmid(reader) != RM_BTREE_ID)
		return false;
	switch (XLogRecGetInfo(reader) & ~XLR_INFO_MASK)
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
note_blocks(Seen *seen, XLogReaderState *reader, Oid lease)
{
	bool		inserts = is_insertion(reader);
	bool		is_hint = XLogRecGetRmid(reader) == RM_XLOG_ID &&
	(XLogRecGetInfo(reader) & ~XLR_INFO_MASK) == XLOG_FPI_FOR_HINT;

	for (int i = 0; i <= XLogRecMaxBlockId(reader); i++)
	{
		Locator		at;
		ForkNumber	fork;
		BlockNumber block;
		Dirty	   *dirty;

		if (!XLogRecGetBlockTagExtended(reader, i, &at, &fork, &block, NULL))
			continue;
		if (SPC(at) == GLOBALTABLESPACE_OID)
			seen->shared = list_append_unique_oid(seen->shared, XLogRecGetXid(reader));
		if (DB(at) == known_baseline && !is_hint)
			seen->refused = "the baseline was written";
		if (DB(at) != lease)
			continue;
		if (SPC(at) != DEFAULTTABLESPACE_OID)
		{
			seen->refused = "a tablespace was written";
			continue;
		}
		/* Records of one table come one after the other. */
		if (seen->last != NULL && seen->last->node == REL(at))
			dirty = seen->last;
		else
			dirty = seen->last = seen_file(seen, REL(at));
		dirty->inserted &= inserts;
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
note_transaction(Seen *seen, XLogReaderState *reader, Oid lease)
{
	uint8		info = XLogRecGetInfo(reader);
	Locator    *gone = NULL;
	int			n = 0;

	switch (info & XLOG_XACT_OPMASK)
	{
		case XLOG_XACT_COMMIT:
		case XLOG_XACT_COMMIT_PREPARED:
			{
				xl_xact_parsed_commit parsed;

				ParseCommitRecord(info, (xl_xact_commit *) XLogRecGetData(reader), &parsed);
				gone = PARSED_LOCATORS(parsed);
				n = parsed.nrels;
				break;
			}
		case XLOG_XACT_ABORT:
		case XLOG_XACT_ABORT_PREPARED:
			{
				xl_xact_parsed_abort parsed;

				ParseAbortRecord(info, (xl_xact_abort *) XLogRecGetData(reader), &parsed);
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
			dirty->dropped = true;
	}
}

static void
note_record(Seen *seen, XLogReaderState *reader, Oid lease)
{
	uint8		info = XLogRecGetInfo(reader) & ~XLR_INFO_MASK;
	char	   *data = XLogRecGetData(reader);

	note_blocks(seen, reader, lease);
	switch (XLogRecGetRmid(reader))
	{
		case RM_SMGR_ID:
			if (info == XLOG_SMGR_CREATE)
				whole_file(seen, RECORD_LOCATOR((xl_smgr_create *) data), lease);
			else if (info == XLOG_SMGR_TRUNCATE)
				whole_file(seen, RECORD_LOCATOR((xl_smgr_truncate *) data), lease);
			break;
		case RM_XACT_ID:
			note_transaction(seen, reader, lease);
			break;
		case RM_RELMAP_ID:
			if (((xl_relmap_update *) data)->dbid == lease)
				seen->refused = "the map of catalogs' files was written";
			break;
		default:
			break;
	}
}

/* Where the first record lies that begins at a position or after it: a page of the log begins with a header. */
XLogRecPtr
first_record(XLogRecPtr position)
{
	if (XLogSegmentOffset(position, wal_segment_size) == 0)
		return position + SizeOfXLogLongPHD;
	if (position % XLOG_BLCKSZ == 0)
		return position + SizeOfXLogShortPHD;
	return position;
}

#define AT_ONCE (16 * XLOG_BLCKSZ)

typedef struct Pages
{
	XLogRecPtr	from,			/* of what is in the buffer */
				until,			/* .. and where it ends */
				flushed;		/* nothing is read beyond */
	char		buffer[AT_ONCE];
} Pages;

/* As read_local_xlog_page, many pages at once: to read one takes as long as to decode it. */
static int
read_page(XLogReaderState *reader, XLogRecPtr page, int wanted, XLogRecPtr record, char *to)
{
	Pages	   *pages = reader->private_data;
	int			length = (int) Min((XLogRecPtr) XLOG_BLCKSZ, pages->flushed - page);

	if (page >= pages->flushed || length < wanted)
		return -1;
	if (page < pages->from || page + length > pages->until)
	{
		WALReadError error;

		pages->from = page;
		pages->until = page + Min((XLogRecPtr) AT_ONCE, pages->flushed - page);
		if (!WALRead(reader, pages->buffer, page, pages->until - page, GetWALInsertionTimeLine(), &error))
			WALReadRaiseError(&error);
	}
	memcpy(to, pages->buffer + (page - pages->from), length);
	return length;
}

/* Read the records from .. until; those of our own transactions are left out. */
void
read_log(Seen *seen, XLogRecPtr from, XLogRecPtr until, Oid lease, const Datum *own, int nown)
{
	Pages	   *pages = palloc(sizeof *pages);
	XLogReaderState *reader;

	pages->from = pages->until = InvalidXLogRecPtr;
	pages->flushed = until;
	reader = XLogReaderAllocate(wal_segment_size, NULL,
								XL_ROUTINE(.page_read = &read_page,
										   .segment_open = &wal_segment_open,
										   .segment_close = &wal_segment_close),
								pages);
	if (reader == NULL)
		ereport(ERROR, errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory"));
	XLogBeginRead(reader, first_record(from));
	while (reader->EndRecPtr < until)
	{
		char	   *error;
		TransactionId xid;
		bool		ours = false;

		if (XLogReadRecord(reader, &error) == NULL)
		{
			seen->refused = error ? pstrdup(error) : "the log ends early";
			break;
		}
#ifdef PGH_PLANT_ONE_RECORD_SHORT
		/* Our own message is the last one, and shorter than that. */
		if (reader->EndRecPtr + 96 >= until)
			break;
#endif
		xid = XLogRecGetXid(reader);
		for (int i = 0; i < nown && !ours; i++)
			ours = TransactionIdIsValid(xid) && DatumGetTransactionId(own[i]) == xid;
		if (!ours)
			note_record(seen, reader, lease);
		CHECK_FOR_INTERRUPTS();
	}
	XLogReaderFree(reader);
	pfree(pages);
}
