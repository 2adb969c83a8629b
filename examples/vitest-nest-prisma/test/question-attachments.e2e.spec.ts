import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('an edit replaces them', async () => {
  const { id } = await app.student();
  const files = [];
  for (const link of ['a.txt', 'b.txt', 'c.txt']) files.push((await app.ask('POST', '/questions/attachments', { title: link, link })).body.id);
  const made = (await app.ask('POST', '/questions', { authorId: id, title: 'T', content: '', attachmentIds: files.slice(0, 2) })).body;
  await app.ask('PUT', `/questions/${made.id}`, { authorId: id, title: 'T', content: '', attachmentIds: [files[0], files[2]] });
  const of = await app.prisma.attachment.findMany({ where: { questionId: made.id }, orderBy: { id: 'asc' } });
  expect(of.map(({ link }) => link)).toEqual(['a.txt', 'c.txt']);
});
