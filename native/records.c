/*
 * Records of the write-ahead log, one after the other, as far as a rewind has to know them: whose they are, which pages they
 * name, and their data.
 *
 * PostgreSQL's own reader (xlogreader.c) copies each page and each record, checks a sum over its bytes and takes all of it
 * apart: three quarters of a reset after 10,000 new rows.  The bytes are the server's own, of this life of it, and flushed; so
 * it is enough that each record fills its length exactly, and whatever does not is an answer, not a guess.
 */
#include "pgh.h"

#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "catalog/pg_control.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#define AT_ONCE (64 * XLOG_BLCKSZ)

typedef struct Stream
{
	XLogRecPtr	next,			/* what is read next */
				until;
	char	   *raw;			/* as it lies in the files */
	char	   *bytes;			/* the same without the headers of pages, which are a multiple of 8 long */
	Size		used,
				room;
} Stream;

/* Opens the files; kept, since nothing closes one that an error leaves open. */
static XLogReaderState *reader = NULL;

static void
close_segment(void)
{
	if (reader->seg.ws_file >= 0)
		wal_segment_close(reader);
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

/* More bytes behind those that are there; false where there are none. */
static bool
fill(Stream *stream)
{
	XLogRecPtr	from = stream->next,
				end = Min(stream->until, (from + AT_ONCE) / XLOG_BLCKSZ * XLOG_BLCKSZ);
	WALReadError error;

	if (from >= end)
		return false;
	if (!WALRead(reader, stream->raw, from, end - from, GetWALInsertionTimeLine(), &error))
		WALReadRaiseError(&error);
	if (stream->used + (end - from) > stream->room)
	{
		stream->room = 2 * (stream->used + (end - from));
		stream->bytes = repalloc_huge(stream->bytes, stream->room);
	}
	for (XLogRecPtr at = first_record(from); at < end;)
	{
		XLogRecPtr	page = at / XLOG_BLCKSZ * XLOG_BLCKSZ,
					stop = Min(end, page + XLOG_BLCKSZ);

		if (page >= from)
		{
			const XLogPageHeaderData *header = (const XLogPageHeaderData *) (stream->raw + (page - from));

			/*
			 * A checkpoint may have given this file another name, and pages of later.  Behind a switch to the next segment
			 * (pg_switch_wal, a base backup) there are zeros, without headers (CopyXLogRecordToWAL).
			 */
			if ((header->xlp_magic != XLOG_PAGE_MAGIC || header->xlp_pageaddr != page ||
				 (header->xlp_info & XLP_FIRST_IS_OVERWRITE_CONTRECORD)) &&
				(header->xlp_magic != 0 || header->xlp_pageaddr != 0))
				ereport(ERROR, errcode(ERRCODE_UNDEFINED_FILE),
						errmsg("WAL at %X/%X was recycled", LSN_FORMAT_ARGS(page)));
		}

		memcpy(stream->bytes + stream->used, stream->raw + (at - from), stop - at);
		stream->used += stop - at;
		at = first_record(stop);
	}
	stream->next = end;
	return true;
}

#define TAKE(what) \
	do { \
		if (rest < sizeof (what)) \
			return false; \
		memcpy(&(what), at, sizeof (what)); \
		at += sizeof (what); \
		rest -= sizeof (what); \
	} while (0)

/* Take a record apart; false where it is not as DecodeXLogRecord expects it. */
static bool
parse(LogRecord *record)
{
	const char *at = (const char *) record->header + SizeOfXLogRecord;
	uint32		rest = record->header->xl_tot_len - SizeOfXLogRecord,
				data = 0,
				main_data = 0;
	Locator		locator = {0};
	bool		located = false;

	record->nblocks = 0;
	while (rest > data)
	{
		uint8		id;

		TAKE(id);
		if (id == XLR_BLOCK_ID_DATA_SHORT)
		{
			uint8		length;

			TAKE(length);
			data += main_data = length;
			break;
		}
		if (id == XLR_BLOCK_ID_DATA_LONG)
		{
			TAKE(main_data);
			data += main_data;
			break;
		}
		if (id == XLR_BLOCK_ID_ORIGIN)
		{
			RepOriginId origin;

			TAKE(origin);
		}
		else if (id == XLR_BLOCK_ID_TOPLEVEL_XID)
		{
			TransactionId xid;

			TAKE(xid);
		}
		else if (id <= XLR_MAX_BLOCK_ID)
		{
			LogBlock   *block = &record->blocks[record->nblocks++];
			uint8		flags;
			uint16		length;

			TAKE(flags);
			TAKE(length);
			data += length;
			if (flags & BKPBLOCK_HAS_IMAGE)
			{
				uint16		hole;
				uint8		info;

				TAKE(length);
				TAKE(hole);
				TAKE(info);
				data += length;
				if (BKPIMAGE_COMPRESSED(info) && (info & BKPIMAGE_HAS_HOLE))
					TAKE(hole);
			}
			if (!(flags & BKPBLOCK_SAME_REL))
			{
				TAKE(locator);
				located = true;
			}
			if (!located || record->nblocks > XLR_MAX_BLOCK_ID)
				return false;
			block->at = locator;
			block->fork = flags & BKPBLOCK_FORK_MASK;
			TAKE(block->block);
			if (block->fork >= FORKS)
				return false;
		}
		else
			return false;
	}
	if (rest != data)
		return false;
	/* As the server's own functions expect it; they are given no others' data. */
	if (record->header->xl_rmid == RM_XACT_ID || record->header->xl_rmid == RM_SMGR_ID ||
		record->header->xl_rmid == RM_RELMAP_ID)
	{
		if (main_data > record->room)
			record->data = repalloc(record->data, record->room = main_data);
		memcpy(record->data, at + rest - main_data, main_data);
	}
	return true;
}

/* Read the records from .. until; NULL, or why they cannot be read. */
const char *
each_record(XLogRecPtr from, XLogRecPtr until, void (*note) (const LogRecord *record, void *seen), void *seen)
{
	Stream		stream = {0};
	LogRecord  *record = palloc0(sizeof *record);
	Size		at = 0;
	bool		switched = false;
	const char *problem = NULL;

	if (reader == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		reader = XLogReaderAllocate(wal_segment_size, NULL,
									XL_ROUTINE(.page_read = NULL, .segment_open = &wal_segment_open,
											   .segment_close = &wal_segment_close), NULL);
		MemoryContextSwitchTo(old);
		if (reader == NULL)
			ereport(ERROR, errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory"));
	}
	/* An error may have left it open. */
	close_segment();
	record->data = palloc(record->room = BLCKSZ);
	stream.next = first_record(from);
	stream.until = until;
	stream.raw = palloc(AT_ONCE);
	stream.room = 2 * AT_ONCE;
	stream.bytes = palloc(stream.room);
	for (;;)
	{
		Size		rest = stream.used - at;

		record->header = (const XLogRecord *) (stream.bytes + at);
		if (rest < SizeOfXLogRecord || rest < record->header->xl_tot_len)
		{
			memmove(stream.bytes, stream.bytes + at, rest);
			stream.used = rest;
			at = 0;
			if (fill(&stream))
				continue;
			/* The last one is our own message, and ends where the reading does. */
			problem = rest == 0 ? NULL : "the log ends in a record";
			break;
		}
		if (record->header->xl_tot_len == 0 && switched)
		{
			/* The rest of a segment that was not filled. */
			at += MAXIMUM_ALIGNOF;
			continue;
		}
		if (record->header->xl_tot_len < SizeOfXLogRecord || !parse(record))
		{
			problem = "a record of the log is not understood";
			break;
		}
		at += MAXALIGN(record->header->xl_tot_len);
#ifdef PGH_PLANT_ONE_RECORD_SHORT
		/* Our own message is the last one, and shorter than that. */
		if (stream.next == until && stream.used - at <= 96)
			break;
#endif
		switched = record->header->xl_rmid == RM_XLOG_ID && (record->header->xl_info & ~XLR_INFO_MASK) == XLOG_SWITCH;
		note(record, seen);
		CHECK_FOR_INTERRUPTS();
	}
	close_segment();
	pfree(stream.raw);
	pfree(stream.bytes);
	pfree(record->data);
	pfree(record);
	return problem;
}
